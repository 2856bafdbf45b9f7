"""Runs one recipe with a probe: saves the gradients of the first optimizer step, or kills the process after a step.

    python run_with_probe.py RECIPE.yaml [gradients=FILE] [kill_after=STEP] [way=WAY]

Started by recipe_runs.py as a process of its own, also under torchrun.
"""

import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from lcot_plugin import activation


@record  # torchrun ends with the traceback of the process that failed first
def main(recipe_path: str, gradients: str | None = None, kill_after: str | None = None, way: str = "") -> None:
    activation.activate()  # before anything of LLaMA-Factory is imported
    import torch
    import yaml
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    if way:
        import engines_on_cpu

        engines_on_cpu.prepare(way)

    class Probe(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if gradients and state.global_step == 0 and state.is_world_process_zero:
                parameters = getattr(model, "module", model).named_parameters()
                torch.save({name: p.grad.clone() for name, p in parameters if p.grad is not None}, gradients)

        def on_step_end(self, args, state, control, **kwargs):
            if kill_after and state.global_step == int(kill_after):
                os.kill(os.getpid(), signal.SIGKILL)

    with open(recipe_path) as file:
        run_exp(yaml.safe_load(file), callbacks=[Probe()])
    if way.startswith(("zero", "fsdp")):
        os._exit(0)  # `end_process` says why; the groups are not there any more
    # Where one is left, the process ends with SIGABRT now and then: more often than never, and too rarely to be tested.
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert "pt_gloo_runloop" not in threads, "the process group still has its threads"


if __name__ == "__main__":
    main(sys.argv[1], **dict(item.split("=", 1) for item in sys.argv[2:]))
