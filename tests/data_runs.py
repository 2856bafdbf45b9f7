"""Records in, what training on them would get out: the `load` of the tests of data sets, and records to give it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

QUESTION = {"role": "user", "content": "<image>How many?"}
RESPONSE = {"role": "assistant", "content": "<think>\nOne, two.\n</think>\n\n\\boxed{2}"}


def loader(twin: Callable[[str], Path], tmp_path: Path) -> Any:
    """`load("sft", entry, records)`: what training on these records would get, its tokenizer and its data report.

    twin: the fixture. tmp_path: for the data and what is made of them.
    """

    def load(
        stage: str,
        info: dict[str, Any] | None = None,
        records: list[dict[str, Any]] | None = None,
        datasets: str = "records",
        folder: Path = tmp_path,
        **changes: Any,
    ) -> tuple[Any, Any, dict[str, Any]]:
        from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
        from llamafactory.hparams import get_train_args
        from llamafactory.model import load_tokenizer

        if records is not None:
            (folder / "records.json").write_text(json.dumps(records))
        if info is not None:
            (folder / "dataset_info.json").write_text(json.dumps(info))
        arguments = {
            "model_name_or_path": str(twin("qwen2_5_vl")),
            "template": "qwen2_vl",
            "stage": stage,
            "do_train": True,
            "dataset": datasets,
            "dataset_dir": str(folder),
            "cutoff_len": 2048,
            "output_dir": str(folder / "out"),
            "report_to": "none",
            "use_cpu": True,
            **changes,
        }
        model_args, data_args, training_args, _, _ = get_train_args(arguments)
        module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
        dataset = get_dataset(template, model_args, data_args, training_args, stage=stage, **module)["train_dataset"]
        report = folder / "out" / "data_report.json"
        return dataset, module["tokenizer"], json.loads(report.read_text()) if report.exists() else {}

    return load


AUTO = {"records": {"file_name": "records.json", "formatting": "lcot_auto"}}
SHAREGPT = {
    "file_name": "records.json",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


def findings(report: dict[str, Any], name: str = "records") -> dict[str, str]:
    """fault -> handling and first detail."""
    return {item["fault"]: f"{item['handling']}: {item['examples'][0]['detail']}" for item in report[name]["findings"]}


def picture(path: Path, size: tuple[int, int] = (64, 48)) -> str:
    Image.new("RGB", size, "navy").save(path)
    return path.name
