"""A picture that is broken in its middle is found when it is decoded, and its record is not trained on."""

from __future__ import annotations

import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from twins import write_problems

from lcot_plugin.errors import DataError
from lcot_plugin.integration.pictures import GREY, decode, with_pictures
from lcot_plugin.render.headers import read_header

LABELS = [-100, -100, 7, 8, 9]


def damaged_png(size: tuple[int, int] = (64, 48)) -> bytes:
    """Header and end are right, what is between is not."""
    buffer = BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    start = data.index(b"IDAT") + 20
    data[start : start + 200] = bytes(200)
    return bytes(data)


def whole_png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_grey_picture_of_the_same_size_stands_in() -> None:
    data = damaged_png()
    assert read_header(data).size == (64, 48), "its header says nothing is wrong"
    pictures, faults = decode([whole_png(), {"bytes": data, "path": None}], "drop")
    assert [picture.size for picture in pictures] == [(20, 10), (64, 48)]
    assert pictures[1].getpixel((5, 5)) == GREY
    assert len(faults) == 1
    with pytest.raises(DataError, match="bad_record_policy: drop"):
        decode([data], "error")


def test_its_record_keeps_one_label_only() -> None:
    """None at all would divide a step's loss by zero."""
    row = {"input_ids": [1, 2, 7, 8, 9], "labels": LABELS, "images": [damaged_png()]}
    assert with_pictures(row, "drop")["labels"] == [-100, -100, -100, -100, 9]
    assert row["labels"] == LABELS
    assert with_pictures({**row, "images": [whole_png()]}, "drop")["labels"] == LABELS
    assert with_pictures({**row, "images": None}, "drop")["labels"] == LABELS


def test_a_file_that_has_gone_since(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.png.*was there when the data were tokenised"):
        decode([str(tmp_path / "gone.png")], "drop")


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_goes_on_without_it(twin: Any, tmp_path: Path, stage: str) -> None:
    from llamafactory.train.tuner import run_exp

    write_problems(tmp_path, 2)
    records = json.loads((tmp_path / "problems.json").read_text())
    (tmp_path / records[0]["images"][0]).write_bytes(damaged_png())
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    for name in ("pictures", "media"):
        logging.getLogger(f"llamafactory.lcot_plugin.integration.{name}").addHandler(handler)
    recipe = {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": "qwen2_vl",
        "stage": stage,
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "problems",
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 1 if stage == "sft" else 4,
        "grpo_num_generations": 2,
        "max_new_tokens": 4,
        "max_steps": 2 if stage == "sft" else 1,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }
    run_exp(recipe)
    assert any("picture is broken" in line for line in said)
    log = (tmp_path / "out" / "trainer_log.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("loss") for line in log]
    assert all(loss == loss for loss in losses if loss is not None), "no NaN"
    with pytest.raises(DataError, match="bad_record_policy: drop"):
        run_exp({**recipe, "bad_record_policy": "error", "overwrite_output_dir": True})
