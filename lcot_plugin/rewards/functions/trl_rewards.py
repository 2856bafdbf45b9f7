"""TRL's reward functions in, functions that the scorer can call out; the registry consumes them.

They are called as TRL's GRPOTrainer calls them, on conversations: a prompt is `[{"role": "user", "content": ...}]`, a
completion `[{"role": "assistant", "content": ...}]`. The same form is given to a function of the user's behind `trl:`.
trl is imported when the first of its rewards is asked for. Its accuracy_reward runs math-verify in this process, with
math-verify's own timeouts and mistakes; `accuracy` is the one that cannot hang.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any

from lcot_plugin.errors import RewardError

_ROLES = {"prompts": "user", "completions": "assistant"}
_SAMPLE_ROLES = {"prompt": "user", "completion": "assistant"}


def names() -> list[str]:
    """What the installed trl.rewards holds: rewards, and `get_...` that make one of parameters."""
    module = _module()
    files = {file.name for file in pkgutil.iter_modules(module.__path__)}
    public = set(getattr(module, "__all__", dir(module))) - files
    return sorted(name for name in public if "reward" in name or is_factory(name))


def load(name: str) -> Callable[..., Any]:
    """A function of trl.rewards by name; RewardError with the names there are."""
    if name not in names():
        raise RewardError(f"trl.rewards has no {name!r} in the installed trl; it has {', '.join(names())}")
    return getattr(_module(), name)


def is_factory(name: str) -> bool:
    """Whether, by TRL's custom, `name` takes parameters and returns a reward function."""
    return name.startswith("get_")


def with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, given its prompts and completions as conversations."""

    @wraps(function)
    def call(**keywords: Any) -> Any:
        for name, role in _ROLES.items():
            if name in keywords:
                keywords[name] = [[{"role": role, "content": text}] for text in keywords[name]]
        for name, role in _SAMPLE_ROLES.items():
            if name in keywords:
                keywords[name] = [{"role": role, "content": keywords[name]}]
        return function(**keywords)

    for name in ("take_counts", "close"):
        if hasattr(function, name):
            setattr(call, name, getattr(function, name))
    return call


def _module() -> ModuleType:
    try:
        return import_module("trl.rewards")
    except ImportError as error:
        raise RewardError(f"trl.rewards cannot be imported ({error}); `pip install trl` installs it") from error
