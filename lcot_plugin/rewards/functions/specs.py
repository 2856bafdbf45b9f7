"""The text of one entry of `grpo_reward_funcs` in, its parts out; the registry and the scorer consume them.

    cosine_length(max_length=2048, min_correct=0.5)@number|expression
    ^ base        ^ parameters                      ^ kinds of answers it is restricted to

Parameters are literals, written as Python writes them; nothing of a spec is ever evaluated.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lcot_plugin.errors import RewardError

# A folder's name may hold brackets and @; what follows the last colon may not.
_SPEC = re.compile(
    r"(?P<base>[^()\s@]+|.*?\.py:[^()\s@:]+)\s*(?:\((?P<parameters>.*)\))?\s*(?:@(?P<kinds>[\w\s|]+))?", re.DOTALL
)


@dataclass(frozen=True)
class RewardSpec:
    """One reward as the user asks for it."""

    text: str
    base: str
    """A registered name, `path.py:function`, `package.module:function`, or one of these after `trl:`."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    """Kinds of answers, as written, whose records it judges; empty for all."""

    def metric_suffix(self) -> str:
        """The parameters and kinds in characters that every metrics logger takes: `max_length_2048`."""
        words = [f"{name}_{value}" for name, value in self.parameters.items()] + list(self.kinds)
        return re.sub(r"[^\w.\-]+", "_", "_".join(words)).strip("_")


def split_items(value: Any) -> list[str]:
    """Of `a,b(c=1,d=2)` or of a YAML list `[a, b]`, which the parser passes through as it is.

    Commas within brackets divide nothing, not even where YAML itself has cut `[b(c=1, d=2)]` there.
    """
    items: list[str] = []
    begun = ""
    for part in map(str, value) if isinstance(value, list) else str(value).split(","):
        begun += part
        if _is_closed(begun):
            items.append(begun.strip())
            begun = ""
        else:
            begun += ","
    # What never closes is left to the reader of specs to complain of.
    return [*items, begun.removesuffix(",").strip()] if begun else items


def _is_closed(text: str) -> bool:
    """Whether every bracket that opens in `text` closes. What stands in quotes within brackets does not count."""
    depth, quote = 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif depth and char in "\"'":
            quote = char
        elif char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
    return depth <= 0


def parse_spec(text: str) -> RewardSpec:
    """The parts of a spec. Raises RewardError that shows how one is written."""
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise RewardError(
            f"cannot read the reward {text!r}; write a name, with parameters in brackets where it has some: "
            "cosine_length(max_length=2048), and @ with kinds of answers to restrict it: iou@boxes"
        )
    kinds = tuple(kind.strip() for kind in (match["kinds"] or "").split("|") if kind.strip())
    parameters = _literals(match["parameters"], text) if match["parameters"] is not None else {}
    return RewardSpec(text.strip(), match["base"].strip(), parameters, kinds)


def _literals(text: str, spec: str) -> dict[str, Any]:
    form = f"reward {spec!r}: write parameters as name=value, separated by commas"
    try:
        call = ast.parse(f"f({text}\n)", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise RewardError(f"{form} ({getattr(error, 'msg', error)})") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise RewardError(form)
    parameters: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise RewardError(form)
        if keyword.arg in parameters:
            raise RewardError(f"reward {spec!r} gives {keyword.arg} twice")
        try:
            parameters[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError):
            written = ast.unparse(keyword.value)
            raise RewardError(
                f"reward {spec!r}: {keyword.arg}={written} is no value; write a number, a text in quotes "
                f"({keyword.arg}='{written}'), True, False, None, or a tuple of these"
            ) from None
    return parameters


def parameters_of(function: Callable[..., Any], data_keywords: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """What a spec may set of `function`: the parameters it names, but for those that the scorer fills."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in named and name not in data_keywords
    }


def check_parameters(name: str, given: Mapping[str, Any], accepted: Mapping[str, inspect.Parameter]) -> None:
    """Raises RewardError for a parameter that `name` does not have, one of the wrong type, or one that is missing."""
    for key, value in given.items():
        if key not in accepted:
            known = ", ".join(_shown(parameter) for parameter in accepted.values())
            raise RewardError(f"reward {name!r} has no parameter {key!r}; it has {known or 'none'}")
        if not _fits(value, accepted[key].annotation):
            raise RewardError(f"reward {name!r}: {_shown(accepted[key])} cannot be {value!r}")
    missing = [key for key, item in accepted.items() if item.default is item.empty and key not in given]
    if missing:
        example = ", ".join(f"{key}=..." for key in missing)
        raise RewardError(
            f"reward {name!r} needs {', '.join(missing)}, which no record provides: write {name}({example})"
        )


_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "dict": (dict,),
    "tuple": (tuple,),
    "list": (list,),
    "None": (type(None),),
}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of an annotated type; True where the annotation says more than the table knows."""
    names = [part.strip() for part in _annotation(annotation).split("|")]
    if not all(name in _TYPES for name in names):
        return True
    # bool is an int to Python, and `max_length=True` a mistake to everybody else.
    return any(isinstance(value, _TYPES[name]) and (not isinstance(value, bool) or name == "bool") for name in names)


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _shown(parameter: inspect.Parameter) -> str:
    """`max_length: int`, `cache: int | None = None`."""
    annotation = _annotation(parameter.annotation)
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}{f': {annotation}' if annotation else ''}{default}"
