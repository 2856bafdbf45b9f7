"""Image tokens, end tokens and the context of models that do not agree with their template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from family_twins import FAMILY_TEMPLATES
from llamafactory.data.formatter import StringFormatter
from llamafactory.data.template import TEMPLATES
from twins import TWIN_TEMPLATES

from lcot_plugin.integration.data_sets import read_recipe
from lcot_plugin.integration.recipe_doctor.lines import Line
from lcot_plugin.integration.recipe_doctor.settings import read_settings
from lcot_plugin.integration.recipe_doctor.shape import empty_model
from lcot_plugin.integration.recipe_doctor.tokens import token_lines

ROOT = Path(__file__).parents[3]
ALL_TEMPLATES = TWIN_TEMPLATES | FAMILY_TEMPLATES
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def in_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def lines(tmp_path: Path, *overrides: str, longest: int | None = None, **config: Any) -> dict[str, Line]:
    """What is said of the embedded model with some of its configuration changed."""
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "lcot_plugin/demo/model", folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    changes = (f"model_name_or_path={folder}", f"output_dir={tmp_path}/out", *overrides)
    _, run, _, _ = read_settings("yaml_recipes/grpo.yaml", changes, 1, True)
    assert run is not None
    recipe = read_recipe("yaml_recipes/grpo.yaml", changes)
    model = empty_model(run, recipe.tokenizer)
    return {line.subject: line for line in token_lines(run, recipe, model, longest)}


def test_the_embedded_model_agrees_with_its_template(tmp_path: Path) -> None:
    found = lines(tmp_path)
    assert {line.level for line in found.values()} == {"ok"}
    assert found["end tokens"].text == "'<|im_end|>'"


def test_a_model_that_puts_pictures_elsewhere(tmp_path: Path) -> None:
    found = lines(tmp_path, image_token_id=328)["image token"]
    assert found.level == "WRONG"
    assert "becomes '<|image_pad|>' in the template's prompt, without the model's '<|video_pad|>' (328)" in found.text


def test_a_template_whose_answers_do_not_end_as_completions_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TEMPLATES["qwen2_vl"], "format_assistant", StringFormatter(slots=["{{content}}\n"]))
    found = lines(tmp_path)["end tokens"]
    assert found.level == "WRONG" and "which holds none of those that end a completion" in found.text


@pytest.mark.parametrize("family", sorted(ALL_TEMPLATES))
def test_no_family_is_called_wrong(family: str, twin: Any, tmp_path: Path) -> None:
    changes = (f"model_name_or_path={twin(family)}", f"template={ALL_TEMPLATES[family]}", f"output_dir={tmp_path}/out")
    _, run, _, _ = read_settings("yaml_recipes/grpo.yaml", (*changes, "cutoff_len=64"), 1, True)
    assert run is not None
    recipe = read_recipe("yaml_recipes/grpo.yaml", changes)
    found = token_lines(run, recipe, empty_model(run, recipe.tokenizer), None)
    assert [line for line in found if line.level == "WRONG"] == []


@pytest.mark.parametrize(("longest", "level"), [(None, "WRONG"), (40, "note"), (2000, "WRONG")])
def test_a_cap_beyond_the_context(tmp_path: Path, longest: int | None, level: str) -> None:
    found = lines(tmp_path, "cutoff_len=2048", longest=longest)["context"]
    assert found.level == level and "2,112 tokens at most of the model's 2,048" in found.text
