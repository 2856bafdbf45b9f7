"""Every example of docs/extending.md is run: a format, rewards, a loss and an advantage of a user's own."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import Block, blocks_of, commands_of, run_commands, write_files

from lcot_plugin.data.formats import get_format
from lcot_plugin.demo.model import MODEL_DIR
from lcot_plugin.demo.task import QUESTION, generate
from lcot_plugin.rewards.functions.registry import ENTRY_POINT_GROUP

RECIPE = {
    "model_name_or_path": str(MODEL_DIR),
    "template": "qwen2_vl",
    "stage": "grpo",
    "do_train": True,
    "finetuning_type": "full",
    "dataset": "my_cards",
    "dataset_dir": ".",
    "cutoff_len": 512,
    "max_new_tokens": 12,
    "grpo_num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "output_dir": "saves",
}


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return blocks_of("extending.md")


def written(blocks: list[Block], language: str) -> list[str]:
    return [block.text for block in blocks if block.language == language and not block.file]


@pytest.fixture(scope="module")
def keys(blocks: list[Block]) -> dict[str, Any]:
    """The YAML of the page, all of it in one run."""
    return {key: value for text in written(blocks, "yaml") for key, value in yaml.safe_load(text).items()}


@pytest.fixture(scope="module")
def workplace(blocks: list[Block], keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, cards as the page describes them, and a recipe with the page's keys."""
    folder = tmp_path_factory.mktemp("extending")
    assert set(write_files(blocks, folder)) == {
        "formats.py",
        "plain_formats.py",
        "rewards.py",
        "losses.py",
        "advantages.py",
    }
    (info,) = map(json.loads, written(blocks, "json"))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    cards: list[dict[str, Any]] = []
    for number, problem in enumerate(generate(8, seed=1)):
        problem.image.save(folder / f"{number}.png")
        card = {"front": QUESTION, "drawing": f"{number}.png"}
        cards.append({"card": card, "back": {"is": problem.answer, "because": problem.thought}})
    cards.append({"card": {"drawing": "0.png"}, "back": {"is": "1"}})
    (folder / info["my_cards"]["file_name"]).write_text(json.dumps(cards))
    (folder / "grpo.yaml").write_text(yaml.safe_dump({**RECIPE, **keys}))
    return folder


@pytest.fixture(scope="module")
def outputs(blocks: list[Block], workplace: Path) -> dict[str, str]:
    (score,) = [command for block in blocks if block.language == "bash" for command in commands_of(block)]
    show = "lcot data show grpo.yaml stage=sft --record 0"
    commands = [show, "llamafactory-cli train grpo.yaml", "cp saves/completions.jsonl .", score]
    return run_commands(commands, workplace)


def test_a_format_serves_sft(outputs: dict[str, str]) -> None:
    shown = outputs["lcot data show grpo.yaml stage=sft --record 0"]
    assert "<think>" in shown and "\\boxed{" in shown and "matched" in shown


def test_a_format_a_loss_an_advantage_and_rewards_train(outputs: dict[str, str], workplace: Path) -> None:
    report = (workplace / "saves/data_report.json").read_text()
    assert "the card has no front" in report
    lines = [json.loads(line) for line in (workplace / "saves/completions.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 8
    assert {"accuracy", "short_and_right", "names_the_unit"} <= lines[0]["rewards"].keys()
    assert all(line["rewards"]["names_the_unit"] is None for line in lines)  # no answer has a unit
    assert {line["advantage"] for line in lines} <= {0.0, 1.0}  # of `best_only`
    assert "names_the_unit" in next(text for command, text in outputs.items() if "reward score" in command)


def test_another_format_takes_the_columns_that_are_named(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    plain = get_format("plain_formats.py:plain")
    raw = plain.read({"ask": "1 + 1?", "back": "3", "solution": "2"}, {"gold": "solution"})
    assert (raw.turns[0].content, raw.images, raw.gold) == ("1 + 1?", [], "2")


def test_the_entry_point_is_the_one_that_is_looked_for(
    blocks: list[Block], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = written(blocks, "toml")
    ((group, points),) = tomllib.loads(text)["project"]["entry-points"].items()
    assert group == ENTRY_POINT_GROUP
    monkeypatch.syspath_prepend(str(workplace))
    for name, value in points.items():
        assert value == f"my_package.rewards:{name}"
        assert callable(getattr(importlib.import_module("rewards"), name))
