"""Seam: `llamafactory.hparams.parser`. A run that goes on by itself goes on from a checkpoint that is whole.

The parser looks for the last checkpoint in output_dir, by its number alone: a folder that a kill has left half-written
is taken, and loading it fails, or worse, some of it is loaded. Here the newest whole one is taken, and what was passed
over is said. Can go when checkpoints are written at once or not at all by transformers itself.
"""

from __future__ import annotations

from types import ModuleType

from llamafactory.extras.logging import get_logger

from lcot_plugin.survival.checkpoints import newest_whole, publish_finished

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it


def apply(module: ModuleType) -> None:
    """Replaces the parser's `get_last_checkpoint`."""

    def get_last_checkpoint(folder: str) -> str | None:
        publish_finished(folder)
        return newest_whole(folder, logger.warning_rank0)

    module.get_last_checkpoint = get_last_checkpoint
