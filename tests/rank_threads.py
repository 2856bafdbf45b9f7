"""Several processes in one: a thread for each, and a gather that waits for all of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

Gather = Callable[[list[Any]], list[Any]]


def run_ranks(num_ranks: int, function: Callable[[int, Gather], Any]) -> list[Any]:
    """`function(rank, gather)` on every rank; gather joins the lists of all in rank order, as gather_object does."""
    barrier = Barrier(num_ranks, timeout=30)
    given: list[list[Any]] = [[] for _ in range(num_ranks)]

    def on_rank(rank: int) -> Any:
        def gather(mine: list[Any]) -> list[Any]:
            given[rank] = mine
            barrier.wait()
            joined = [item for part in given for item in part]
            barrier.wait()
            return joined

        try:
            return function(rank, gather)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(num_ranks) as pool:
        futures = [pool.submit(on_rank, rank) for rank in range(num_ranks)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise next((error for error in errors if "Barrier" not in type(error).__name__), errors[0])
        return [future.result() for future in futures]
