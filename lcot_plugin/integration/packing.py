"""Seam: `llamafactory.train.sft.workflow`. Packs for `length_aware_packing: true`, and files of the run for all.

`run_sft` names its trainer in its own module: for a packed run that name gives a trainer on packs, and everything else
of the workflow (loading, evaluation, prediction, metrics, model card) stays LLaMA-Factory's. Any other run gets one
callback more, which writes run.json and its like. Can go when a trainer can be chosen there.
"""

from __future__ import annotations

from contextvars import ContextVar
from types import ModuleType
from typing import Any

from llamafactory.extras.logging import get_logger

from lcot_plugin.integration.packing_refusals import check_packing_settings
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.integration.run_files import NoFiles, run_files
from lcot_plugin.integration.run_record import sft_plan
from lcot_plugin.integration.stage import wait_for_everyone

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it

_current: ContextVar[tuple[RunArguments, NoFiles] | None] = ContextVar("lcot_packed_run", default=None)


def apply(module: ModuleType) -> None:
    """Wraps `run_sft` and the name of its trainer."""
    original_run = module.run_sft
    original_trainer = module.CustomSeq2SeqTrainer

    def run_sft(
        model_args: Any,
        data_args: Any,
        training_args: Any,
        finetuning_args: Any,
        generating_args: Any,
        callbacks: list[Any] | None = None,
    ) -> None:
        run = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
        if not (data_args.length_aware_packing and training_args.do_train):
            with run_files(run, sft_plan(run)) as files:
                return original_run(*run, [*(callbacks or []), files])
        check_packing_settings(run)
        settle_budget(run)
        with run_files(run, sft_plan(run)) as files:
            token = _current.set((run, files))
            try:
                original_run(*run, [*(callbacks or []), files])
            finally:
                _current.reset(token)
        wait_for_everyone()

    def make_trainer(**arguments: Any) -> Any:
        current = _current.get()
        if current is None:
            return original_trainer(**arguments)
        # Its imports lead back to the module that is being patched.
        from lcot_plugin.integration.packing_trainer import packing_trainer

        run, files = current
        trainer = packing_trainer(run, arguments)
        files.stop_signals = trainer.stop_signals
        return trainer

    module.run_sft = run_sft
    module.CustomSeq2SeqTrainer = make_trainer


def packs_now() -> bool:
    """Whether a packed SFT run is under way; `length_aware_packing` means nothing anywhere else."""
    return _current.get() is not None


def settle_budget(run: RunArguments) -> None:
    """Fills in `pack_max_tokens` and makes a batch one pack; from here on no record is longer than a pack."""
    data, rows = run.data, run.training.per_device_train_batch_size
    if data.pack_max_tokens is None:
        data.pack_max_tokens = data.cutoff_len * rows
    elif data.pack_max_tokens < data.cutoff_len:
        logger.info_rank0(
            f"pack_max_tokens {data.pack_max_tokens:,} is less than cutoff_len {data.cutoff_len:,}: records longer "
            f"than {data.pack_max_tokens:,} tokens meet overlong_policy: {data.overlong_policy}."
        )
        data.cutoff_len = data.pack_max_tokens
    run.training.per_device_train_batch_size = 1  # a batch is a pack: what the Trainer logs
