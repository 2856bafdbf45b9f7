"""A name or `path.py:function` in, a reward function out; the scorer consumes it.

A reward function takes keywords, one list per keyword with one element per completion, and returns one number per
completion, None where it abstains:

    def shouting(completions: list[str], **kwargs) -> list[float | None]:
        return [1.0 if text.isupper() else 0.0 for text in completions]

Keywords, after TRL's batch signature with plain strings: prompts (the last user turns), completions, completion_ids,
gold, answer_type, source (data set names), endings ("stopped", "truncated"), verdicts (types.Verdict or None). A
function without **kwargs is given those that it names.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards import builtin

RewardFunction = Callable[..., list[float | None]]

REWARDS: dict[str, RewardFunction] = {
    "accuracy": builtin.accuracy,
    "format_think_boxed": builtin.format_think_boxed,
    "format_think_answer": builtin.format_think_answer,
}


def register_reward(name: str, function: RewardFunction) -> None:
    """Make `function` known as `name`; RewardError where the name is taken or reads as a file."""
    if name in REWARDS:
        raise RewardError(
            f"there is a reward {name!r} already; choose another name or unregister_reward({name!r}) first"
        )
    if not name or ":" in name:
        raise RewardError(f"{name!r} cannot name a reward: a colon stands for path.py:function")
    if not callable(function):
        raise RewardError(f"reward {name!r} must be a function, not {type(function).__name__}")
    REWARDS[name] = function


def unregister_reward(name: str) -> None:
    """Forget a reward; RewardError where there is none of that name."""
    if name not in REWARDS:
        raise RewardError(_unknown(name))
    del REWARDS[name]


def reward_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(REWARDS)


def get_reward(spec: str) -> tuple[str, RewardFunction]:
    """(name, function) of a registered name, or of `path/to/file.py:function`, whose name is the function's.

    Raises RewardError with the known names and the nearest one, or with what is wrong with the file.
    """
    if spec in REWARDS:
        return spec, REWARDS[spec]
    path, colon, name = spec.rpartition(":")
    if colon and path.endswith(".py"):
        return name, _from_file(Path(path).expanduser().resolve(), name)
    raise RewardError(_unknown(spec))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, REWARDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown reward {name!r}{hint} Known: {', '.join(reward_names())}, or path/to/file.py:function"


@lru_cache(maxsize=64)
def _module(path: Path) -> object:
    spec = importlib.util.spec_from_file_location(f"lcot_user_rewards_{path.stem}_{abs(hash(path)):x}", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise RewardError(f"reward file {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _from_file(path: Path, name: str) -> RewardFunction:
    if not path.is_file():
        raise RewardError(f"reward file {path} does not exist; write path/to/file.py:function")
    module = _module(path)
    function = getattr(module, name, None)
    if function is None:
        defined = sorted(key for key, value in vars(module).items() if inspect.isfunction(value))
        raise RewardError(f"reward file {path} has no function {name!r}; it defines {', '.join(defined) or 'none'}")
    if not callable(function):
        raise RewardError(f"{name!r} in reward file {path} is {type(function).__name__}, not a function")
    return function
