"""Runs one recipe with a probe: saves the gradients of the first optimizer step, or kills the process after a step.

    python run_with_probe.py RECIPE.yaml [gradients=FILE] [kill_after=STEP]

Started by test_grpo_run.py as a process of its own, also under torchrun.
"""

import os
import signal
import sys

from lcot_plugin import activation

activation.activate()

import torch
import yaml
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback


class Probe(TrainerCallback):
    def __init__(self, gradients: str | None, kill_after: int | None):
        self.gradients, self.kill_after = gradients, kill_after

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.gradients and state.global_step == 0 and state.is_world_process_zero:
            model = getattr(model, "module", model)
            torch.save({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, self.gradients)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    options = dict(item.split("=", 1) for item in sys.argv[2:])
    with open(sys.argv[1]) as file:
        recipe = yaml.safe_load(file)
    kill_after = int(options["kill_after"]) if "kill_after" in options else None
    run_exp(recipe, callbacks=[Probe(options.get("gradients"), kill_after)])
