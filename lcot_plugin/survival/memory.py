"""Out of memory, on a device or on the host: recognised, and let go of."""

from __future__ import annotations

import gc
import traceback

import torch

_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")


def is_out_of_memory(error: BaseException | None) -> bool:
    """torch's CPU allocator and some of CUDA's libraries raise a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TEXTS)


def free_memory(error: BaseException | None) -> None:
    """Lets go of what the failed computation held, which the tracebacks of the error and of its cause keep alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
