"""Runs one recipe with a fault: a signal, a kill in the middle of a checkpoint, no memory, gradients of NaN.

    python run_with_fault.py RECIPE.yaml [rank=0] [term_at=STEP] [term_in_rollout=STEP] [term_in_update=STEP]
        [kill_in_save=STEP] [memory_in_rollout=STEP] [memory_in_update=STEP] [memory_in_backward=STEP] [nan_at=STEP]
        [engine_gone=STEP] [term_in_evaluation=STEP] [error_at=STEP]

A fault strikes the process `rank`, once, at the optimizer step of that number. Started by recipe_runs.py as a process
of its own, also under torchrun.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from lcot_plugin import activation


@record
def main(recipe_path: str, faults: dict[str, int]) -> None:
    activation.activate()  # before anything of LLaMA-Factory is imported
    import torch
    import yaml
    from llamafactory.train.tuner import run_exp
    from transformers import Trainer, TrainerCallback

    from lcot_plugin.errors import RolloutError
    from lcot_plugin.evaluate.evaluator import Evaluator
    from lcot_plugin.packing.trainer import PackingTrainerMixin
    from lcot_plugin.policy.trainer import GrpoTrainerMixin
    from lcot_plugin.rollout.transformers_engine import TransformersEngine

    step = {"now": 0}
    mine = int(os.environ.get("RANK", "0")) == faults.pop("rank", 0)

    def strikes(fault: str) -> bool:
        if not mine or faults.get(fault) != step["now"]:
            return False
        del faults[fault]
        return True

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step["now"] = state.global_step
            if strikes("term_at"):
                os.kill(os.getpid(), signal.SIGTERM)

    out_of_memory = torch.OutOfMemoryError("CUDA out of memory (made by a test)")
    generate, update, save = TransformersEngine.generate, GrpoTrainerMixin._pass, Trainer._save_rng_state
    evaluate, packed_step = Evaluator.run, PackingTrainerMixin.training_step
    evaluating = {"now": False}

    def failing_generate(
        self: Any, model: Any, prompts: Any, sampling: Any, slots: Any, progress: Any = lambda ended, tokens: None
    ) -> Any:
        calls = {"number": 0}

        def watched(num_ended: int, num_tokens: int) -> None:
            calls["number"] += 1
            if calls["number"] == 3:
                if strikes("term_in_evaluation" if evaluating["now"] else "term_in_rollout"):
                    os.kill(os.getpid(), signal.SIGTERM)
                if strikes("memory_in_rollout"):
                    raise out_of_memory
                if strikes("engine_gone"):
                    raise RolloutError("no server answers (made by a test)")
            progress(num_ended, num_tokens)

        return generate(self, model, prompts, sampling, slots, watched)

    def failing_pass(self: Any, *args: Any) -> Any:
        if strikes("term_in_update"):
            os.kill(os.getpid(), signal.SIGTERM)
        if strikes("memory_in_update"):
            raise out_of_memory
        if strikes("error_at"):
            raise RuntimeError("an ordinary error (made by a test)")
        if strikes("memory_in_backward"):
            update(self, *args)
            raise out_of_memory
        return with_bad_gradient(self, update(self, *args))

    def failing_packed_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return with_bad_gradient(self, packed_step(self, *args, **kwargs))

    def with_bad_gradient(trainer: Any, loss: Any) -> Any:
        if strikes("nan_at"):
            next(p for p in trainer.model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss

    def noted_evaluation(self: Any, *args: Any) -> Any:
        evaluating["now"] = True
        try:
            return evaluate(self, *args)
        finally:
            evaluating["now"] = False

    def failing_save(self: Any, output_dir: str) -> None:
        if mine and faults.get("kill_in_save") == self.state.global_step:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, output_dir)

    TransformersEngine.generate = failing_generate  # type: ignore[method-assign]
    GrpoTrainerMixin._pass = failing_pass  # type: ignore[method-assign]
    PackingTrainerMixin.training_step = failing_packed_step  # type: ignore[method-assign]
    Evaluator.run = noted_evaluation  # type: ignore[method-assign]
    Trainer._save_rng_state = failing_save
    with open(recipe_path) as file:
        run_exp(yaml.safe_load(file), callbacks=[Steps()])


if __name__ == "__main__":
    main(sys.argv[1], {name: int(value) for name, value in (item.split("=") for item in sys.argv[2:])})
