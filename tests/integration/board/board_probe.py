"""Prints what LLaMA Board makes of settings, as JSON; started with and without the plugin.

    python board_probe.py CONFIG_FOLDER     (in the folder that the Board shall write to)

Out: by stage, the run's arguments and the previewed command; of each saved configuration, the values that loading sets.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from board_page import Board

STAGES = ("Supervised Fine-Tuning", "Reward Modeling", "PPO", "DPO", "KTO", "Pre-Training")
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {
        "top.finetuning_type": "full",
        "extra_args": json.dumps({"default_system": "a b", "adam_beta1": 0.8, "dataloader_pin_memory": False}),
        "packing": True,
        "val_size": 0.1,
        "report_to": "tensorboard",
        "use_badam": True,
    },
)


def main() -> None:
    warnings.simplefilter("ignore")
    board = Board()
    runner = board.engine.runner
    made = {}
    for stage in STAGES:
        for number, settings in enumerate(SETTINGS):
            reward_model = ["x"] if number == 0 else "x"  # a list of adapters, or one model
            data = board.inputs(training_stage=stage, reward_model=reward_model, **settings)
            args = runner._parse_train_args(data)
            (update,) = runner.preview_train(data)
            made[f"{stage} {number}"] = {"args": args, "command": update[board.elem("train.output_box")]}
    loaded = {}
    for path in sorted(Path(sys.argv[1]).glob("*.yaml")):
        values = runner.load_args("en", str(path.resolve()))
        loaded[path.name] = {board.engine.manager.get_id_by_elem(elem): value for elem, value in values.items()}
    print(json.dumps({"made": made, "loaded": loaded}))


if __name__ == "__main__":
    main()
