"""Runs one recipe and prints, as JSON, the bytes that Python holds after some of its optimizer steps.

python run_and_measure.py RECIPE.yaml STEP STEP...
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

from lcot_plugin import activation


def main(recipe_path: str, steps: list[int]) -> None:
    activation.activate()
    import yaml
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    held: dict[int, dict[str, int]] = {}

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step not in steps:
                return
            gc.collect()
            if not tracemalloc.is_tracing():
                tracemalloc.start()
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            held[state.global_step] = {"python": tracemalloc.get_traced_memory()[0], "resident": resident}

    with open(recipe_path) as file:
        run_exp(yaml.safe_load(file), callbacks=[Measure()])
    print(json.dumps(held))


if __name__ == "__main__":
    main(sys.argv[1], [int(step) for step in sys.argv[2:]])
