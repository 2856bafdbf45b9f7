"""Folders of models and adapters that are not whole, and outputs that cannot be written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lcot_plugin.integration.recipe_doctor.folders import adapter_lines, folder_lines, model_problem, output_problem

MODEL = Path(__file__).parents[3] / "lcot_plugin/demo/model"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(MODEL, tmp_path / "model")


def test_a_whole_model_has_no_problem(model: Path) -> None:
    assert model_problem(model) is None
    assert folder_lines({"model_name_or_path": str(model), "output_dir": str(model.parent / "a/b")}) == []


def test_a_model_that_is_not_whole(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert model_problem(model) == (
        f"model.safetensors has {len(whole) - 1:,} of {len(whole):,} bytes: copy or download it again."
    )
    weights.write_bytes(whole[:100])
    assert "is cut off or no safetensors file" in str(model_problem(model))
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    assert "there is no model-00002-of-00002.safetensors in it" in str(model_problem(model))
    (model / "model.safetensors.index.json").unlink()
    weights.unlink()
    assert "there are no weights in it" in str(model_problem(model))
    (model / "config.json").write_text("{")
    assert "config.json is no JSON" in str(model_problem(model))
    (model / "config.json").unlink()
    (line,) = folder_lines({"model_name_or_path": str(model)})
    assert line.level == "WRONG" and "there is no config.json in it" in line.text
    (model / "run.json").write_text("{}")
    assert "a run has written into it that has not saved a model" in str(model_problem(model))
    (model / "adapter_config.json").write_text("{}")
    assert "it is an adapter: name it in adapter_name_or_path" in str(model_problem(model))


class Layers(torch.nn.Module):
    """A model with one layer of 8 to 4."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 4)})])


def adapter(folder: Path, inner: int, **tensors: Any) -> dict[str, str]:
    folder.mkdir()
    name = "base_model.model.model.layers.0.q_proj"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    weights = {f"{name}.lora_A.weight": torch.zeros(2, inner), f"{name}.lora_B.weight": torch.zeros(4, 2)}
    save_file(weights | tensors, folder / "adapter_model.safetensors")
    return {"adapter_name_or_path": str(folder)}


def test_an_adapter_of_another_model_does_not_fit(tmp_path: Path) -> None:
    (good,) = adapter_lines(adapter(tmp_path / "fits", 8), Layers())
    assert (good.level, good.text) == ("ok", f"{tmp_path}/fits: its 1 layers are in the model")
    (wrong,) = adapter_lines(adapter(tmp_path / "wide", 16), Layers())
    assert wrong.level == "WRONG"
    assert "1 of its 1 layers are not in this model, or have other widths there: it was trained on some/base" in (
        wrong.text
    )


def test_an_adapter_that_is_not_whole(tmp_path: Path, model: Path) -> None:
    written = adapter(tmp_path / "adapter", 8)
    assert folder_lines(written) == []
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    assert "there is no adapter_model.safetensors in it" in folder_lines(written)[0].text
    assert "name it in model_name_or_path" in folder_lines({"adapter_name_or_path": str(model)})[0].text


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_problem(tmp_path / "a/b") is None and not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    assert output_problem(tmp_path / "file/x") == f"{tmp_path}/file is a file: name another folder."

    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert output_problem(tmp_path) == f"{tmp_path} cannot be written to (Permission denied): name another folder."
