"""The spec of a reward in, its name and function out; the scorer and `lcot reward list` consume them.

A spec is a registered name, `path/to/file.py:function`, `package.module:function`, the name of an installed entry
point of the group `lcot_plugin.rewards`, or `trl:` before a name of trl.rewards or one of the former; see `specs` for
parameters and restrictions. A class is called with the parameters once, and its instances are the function.

A reward function takes keywords, one list per keyword with one element per completion, and returns one number per
completion, None where it abstains:

    def shouting(completions: list[str], **kwargs) -> list[float | None]:
        return [1.0 if text.isupper() else 0.0 for text in completions]

or, one that names `completion`, takes the values of one completion and returns its number. Both may be `async`. The
keywords are listed in `calls`; a function without **kwargs is given those that it names.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards.functions.calls import KEYWORDS, SAMPLE_KEYWORDS
from lcot_plugin.rewards.functions.specs import check_parameters, parameters_of, parse_spec
from lcot_plugin.user_functions import checked_callable, function_in_file, function_of, split_file_spec

RewardFunction = Callable[..., Any]
ENTRY_POINT_GROUP = "lcot_plugin.rewards"

_ROOM = "lcot_plugin.rewards"
_SHIPPED = {
    "accuracy": f"{_ROOM}.functions.correctness:accuracy",
    "anls": f"{_ROOM}.functions.graded:anls",
    "boxed_position": f"{_ROOM}.functions.formats:boxed_position",
    "choice": f"{_ROOM}.functions.graded:choice",
    "cosine_length": f"{_ROOM}.functions.shaping:cosine_length",
    "format_think_answer": f"{_ROOM}.functions.formats:format_think_answer",
    "format_think_boxed": f"{_ROOM}.functions.formats:format_think_boxed",
    "gaussian_number": f"{_ROOM}.functions.graded:gaussian_number",
    "giou": f"{_ROOM}.functions.graded:giou",
    "iou": f"{_ROOM}.functions.graded:iou",
    "language_consistency": f"{_ROOM}.functions.shaping:language_consistency",
    "length": f"{_ROOM}.functions.shaping:length",
    "llm_judge": f"{_ROOM}.functions.judge_model:LlmJudge",
    "repetition": f"{_ROOM}.functions.shaping:repetition",
    "soft_overlong": f"{_ROOM}.functions.shaping:soft_overlong",
    "tag_count": f"{_ROOM}.functions.formats:tag_count",
}
REWARDS: dict[str, RewardFunction | str] = dict(_SHIPPED)
"""Name -> function, class of functions, or `module:name` of one that is imported when first asked for."""

_IN_MODULE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
_DATA_KEYWORDS = {*KEYWORDS, *SAMPLE_KEYWORDS}


def register_reward(name: str, function: RewardFunction) -> None:
    """Make `function` known as `name`; RewardError where the name is taken or reads as another kind of spec."""
    if name in REWARDS:
        raise RewardError(
            f"there is a reward {name!r} already; choose another name or unregister_reward({name!r}) first"
        )
    if not name or re.search(r"[:@(),\s]", name):
        raise RewardError(
            f"{name!r} cannot name a reward: a colon stands for path.py:function, and brackets, commas, spaces and @ "
            "have a meaning too"
        )
    if not callable(function):
        raise RewardError(f"reward {name!r} must be a function, not {type(function).__name__}")
    REWARDS[name] = function


def unregister_reward(name: str) -> None:
    """Forget a reward; RewardError where there is none of that name."""
    if name not in REWARDS:
        raise RewardError(_unknown(name))
    del REWARDS[name]


def reward_names() -> list[str]:
    """The names that need no path: registered ones and installed entry points, sorted."""
    return sorted({*REWARDS, *_entry_points()})


def get_reward(spec: str, defaults: Mapping[str, Any] | None = None) -> tuple[str, RewardFunction]:
    """(name, function) of a spec, its parameters bound; a file's or module's function gives its own name.

    defaults: values for parameters that a registered reward requires and the spec leaves out. Raises RewardError with
    the known names and the nearest one, with what is wrong with the file, or with the parameters that there are.
    """
    parsed = parse_spec(spec)
    base = re.sub(r"^trl\.rewards:", "trl:", parsed.base)
    name, target, factory = _find(base)
    given = dict(parsed.parameters)
    if factory or inspect.isclass(target):
        check_parameters(name, given, parameters_of(target))
        function = target(**given)
        if not callable(function):
            raise RewardError(f"reward {name!r} makes {type(function).__name__}, which cannot be called")
        return name, _messages(function) if base.startswith("trl:") else function
    accepted = parameters_of(target, _DATA_KEYWORDS)
    if base in REWARDS:
        required = (key for key, item in accepted.items() if item.default is item.empty)
        given = {key: defaults[key] for key in required if defaults and key in defaults} | given
    check_parameters(name, given, accepted)
    function = partial(target, **given) if given else target
    if base in _SHIPPED and given:
        function(**{keyword: [] for keyword in KEYWORDS})  # values out of range are told now, not after a rollout
    return name, function


@dataclass(frozen=True)
class RewardDescription:
    """One line of `lcot reward list`."""

    name: str
    summary: str
    """The first paragraph of its docstring."""
    parameters: str
    """`max_length, cache=None`: those without `=` must be written, or are the run's own."""
    origin: str
    """`lcot_plugin`, `registered`, the distribution of an entry point, or `trl`."""


def describe(with_trl: bool = False) -> list[RewardDescription]:
    """Every reward that needs no path, sorted by name; trl.rewards, which take seconds to import, where asked for."""
    rows = [
        _described(name, "lcot_plugin" if name in _SHIPPED else "registered", _registered(name)) for name in REWARDS
    ]
    for name, point in _entry_points().items():
        if name not in REWARDS:
            rows.append(_described(name, point.dist.name if point.dist else "installed", _load(point)))
    rows.sort(key=lambda row: row.name)
    if with_trl:
        from lcot_plugin.rewards.functions import trl_rewards

        rows += [_described(f"trl:{name}", "trl", trl_rewards.load(name)) for name in trl_rewards.names()]
    return rows


def _described(name: str, origin: str, function: RewardFunction) -> RewardDescription:
    words = inspect.getdoc(function) or ""
    parameters = ", ".join(
        key if item.default is item.empty else f"{key}={item.default!r}"
        for key, item in parameters_of(function, () if inspect.isclass(function) else _DATA_KEYWORDS).items()
    )
    return RewardDescription(name, " ".join(words.split("\n\n")[0].split()), parameters, origin)


def _find(base: str) -> tuple[str, RewardFunction, bool]:
    """(name, function or class, whether it is a factory to be called with the parameters)."""
    if base.startswith("trl:"):
        from lcot_plugin.rewards.functions import trl_rewards

        rest = base.removeprefix("trl:")
        name, target = (rest, trl_rewards.load(rest)) if ":" not in rest else _find(rest)[:2]
        if inspect.isclass(target):
            return name, target, True
        if trl_rewards.is_factory(name):
            return name.removeprefix("get_"), target, True
        return name, _messages(target), False
    if base in REWARDS:
        return base, _registered(base), False
    if in_file := split_file_spec(base):
        path, name = in_file
        return name, function_in_file(path, name, "reward", RewardError), False
    if in_module := _IN_MODULE.fullmatch(base):
        return in_module["name"], _from_module(in_module["module"], in_module["name"]), False
    if point := _entry_points().get(base):
        return base, _load(point), False
    raise RewardError(_unknown(base))


def _messages(function: RewardFunction) -> RewardFunction:
    from lcot_plugin.rewards.functions import trl_rewards

    return trl_rewards.with_messages(function)


def _registered(name: str) -> RewardFunction:
    target = REWARDS[name]
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        return getattr(import_module(module), attribute)
    return target


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, reward_names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return (
        f"unknown reward {name!r}{hint} Known: {', '.join(reward_names())}, trl:NAME of trl.rewards, or "
        "path/to/file.py:function, or package.module:function"
    )


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def _load(point: EntryPoint) -> RewardFunction:
    try:
        function = point.load()
    except Exception as error:
        raise RewardError(
            f"reward {point.name!r}, installed as {point.value}, cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return checked_callable(function, point.name, f"the installed {point.value}", RewardError)


def _from_module(module: str, name: str) -> RewardFunction:
    try:
        found = import_module(module)
    except Exception as error:
        raise RewardError(
            f"reward module {module} cannot be imported: {type(error).__name__}: {error}; write the module's dotted "
            "name as Python imports it, or path/to/file.py:function"
        ) from error
    return function_of(found, name, f"reward module {module}", RewardError)
