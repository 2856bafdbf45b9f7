"""What process 0 does for all processes of the training, and its failures on all of them.

In: something to do with the servers. Out: what came of it, on every process, or an error on every process, marked as
such (`agreed`): one process that raised alone would leave the others waiting in their next exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

from lcot_plugin.errors import RolloutError

T = TypeVar("T")


def agreed(accelerator: Any, decide: Callable[[], T]) -> T:
    """What `decide` returns on process 0. A collective. Raises what `decide` raises there, a RolloutError elsewhere."""
    told: list[Any] = [None, None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            told[0] = decide()
        except Exception as error:
            failure = error
            told[1] = f"{type(error).__name__}: {error}"
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    if failure is None and told[1] is not None:
        failure = RolloutError(f"Process 0 could not serve the policy: {told[1]}")
    if failure is not None:
        failure.agreed = True  # type: ignore[attr-defined]
        raise failure
    return told[0]
