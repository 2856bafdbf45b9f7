"""Folders that a recipe names and that are here: is a model whole, does an adapter fit, can the output be written?

In: the keys as written, later the model without weights. Out: findings. Of weights only the headers are read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lcot_plugin.integration.recipe_doctor.lines import GOOD, NOTE, WRONG, Line
from lcot_plugin.report.run_log import RUN_FILE
from lcot_plugin.vlm import unwrap_base_model

MODEL_FOLDER = "model folder"
"""Subject of what is wrong with one."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"


def folder_lines(written: Mapping[str, Any]) -> list[Line]:
    """What is wrong with the folders of a model and its adapters, and with where the run writes to."""
    lines = []
    for folder in _folders(written.get("model_name_or_path")):
        problem = model_problem(folder)
        lines += [Line(WRONG, MODEL_FOLDER, f"{folder}: {problem}")] * (problem is not None)
    for folder in _folders(written.get("adapter_name_or_path")):
        problem = adapter_problem(folder)
        lines += [Line(WRONG, "adapter folder", f"{folder}: {problem}")] * (problem is not None)
    output = written.get("output_dir")
    problem = None if output is None else output_problem(Path(str(output)).expanduser())
    lines += [Line(WRONG, "output_dir", f"{output}: {problem}")] * (problem is not None)
    return lines


def _folders(value: Any) -> Iterator[Path]:
    """Those of a name, a list of names, or names joined by commas, that are here."""
    parts = value if isinstance(value, list) else str(value or "").split(",")
    yield from (path for part in parts if str(part).strip() and (path := Path(str(part).strip()).expanduser()).is_dir())


def model_problem(folder: Path) -> str | None:
    """Why a folder is no whole model."""
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            return "it is an adapter: name it in adapter_name_or_path, and its base in model_name_or_path."
        if (folder / RUN_FILE).is_file():
            return "a run has written into it that has not saved a model: let its training end first."
        return "there is no config.json in it: name the folder of a model, or copy it again."
    if problem := _json_problem(folder / "config.json"):
        return problem
    index = folder / INDEX
    if index.is_file():
        if problem := _json_problem(index):
            return problem
        names = sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if not names and not any(folder.glob("*.bin")):
            return "there are no weights in it (*.safetensors): copy or download it again."
    for name in names:
        if problem := weights_problem(folder / name):
            return problem
    return None


def adapter_problem(folder: Path) -> str | None:
    """Why a folder is no whole adapter."""
    if not (folder / ADAPTER_CONFIG).is_file():
        advice = "name it in model_name_or_path." if (folder / "config.json").is_file() else "it is not whole."
        return f"there is no {ADAPTER_CONFIG} in it, so it is no adapter: {advice}"
    if problem := _json_problem(folder / ADAPTER_CONFIG):
        return problem
    if (folder / ADAPTER_WEIGHTS).is_file():
        return weights_problem(folder / ADAPTER_WEIGHTS)
    return None if any(folder.glob("adapter_model.*")) else f"there is no {ADAPTER_WEIGHTS} in it: it is not whole."


def weights_problem(file: Path) -> str | None:
    """Why a safetensors file is not whole: its header says how long it must be."""
    try:
        header, size = tensors_of(file)
    except FileNotFoundError:
        return f"there is no {file.name} in it: copy or download it again."
    except (OSError, ValueError):
        return f"{file.name} is cut off or no safetensors file: copy or download it again."
    wanted = size + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    found = file.stat().st_size
    return None if found >= wanted else f"{file.name} has {found:,} of {wanted:,} bytes: copy or download it again."


def tensors_of(file: Path) -> tuple[dict[str, Any], int]:
    """Name -> dtype, shape and place of a safetensors file's tensors; and bytes before the first. Raises ValueError."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length < 10**8:  # as safetensors has it
            raise ValueError(f"{file}: no header")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _json_problem(file: Path) -> str | None:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{file.name} is no JSON ({error}): it is cut off or was edited, copy it again."
    return None


def output_problem(folder: Path) -> str | None:
    """Why nothing can be written into a folder that may still have to be made."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        return f"{place} is a file: name another folder."
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place} cannot be written to ({error.strerror}): name another folder."


# Adapters


def adapter_lines(written: Mapping[str, Any], model: Any) -> list[Line]:
    """Whether the layers of the adapters that are here exist in the model, with their widths."""
    lines = []
    widths = {
        (
            _tail(name).removesuffix(".base_layer"),
            getattr(module, "in_features", None),
            getattr(module, "out_features", None),
        )
        for name, module in unwrap_base_model(model).named_modules()
    }
    for folder in _folders(written.get("adapter_name_or_path")):
        file = folder / ADAPTER_WEIGHTS
        if adapter_problem(folder) or not file.is_file():
            continue
        shapes = {name: entry["shape"] for name, entry in tensors_of(file)[0].items()}
        inner = {name.partition(".lora_A.")[0]: shape[-1] for name, shape in shapes.items() if ".lora_A." in name}
        outer = {name.partition(".lora_B.")[0]: shape[0] for name, shape in shapes.items() if ".lora_B." in name}
        strange = [name for name in inner if (_tail(name), inner[name], outer.get(name)) not in widths]
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
        if strange:
            text = f"{len(strange)} of its {len(inner)} layers are not in this model, or have other widths there"
            lines.append(Line(WRONG, "adapter", f"{folder}: {text}: it was trained on {base}."))
        elif inner:
            lines.append(Line(GOOD, "adapter", f"{folder}: its {len(inner)} layers are in the model"))
        else:
            lines.append(Line(NOTE, "adapter", f"{folder} holds no LoRA layers, so whether it fits was not looked at"))
    return lines


def _tail(name: str) -> str:
    """`3.self_attn.q_proj`: releases of transformers differ in what stands before."""
    return name.rpartition("layers.")[2] if "layers." in name else name.rpartition("blocks.")[2]
