"""docs/tutorial.md is run as it stands, block by block, but for fewer records and steps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pages import blocks_of, commands_of, run_commands, write_files

FEWER = {
    "make_data.py": [('"test", 100', '"test", 12'), ('"rl", 400', '"rl", 24'), ('"sft", 400', '"sft", 40')],
    # A learning rate that leaves the model as it was: the base model is right one time in ten, so that a few of the 24
    # problems are learnable, whereas three steps of real training would leave none.
    "sft.yaml": [
        ("num_train_epochs: 15", "max_steps: 3"),
        ("logging_steps: 5", "logging_steps: 1"),
        ("learning_rate: 1.0e-3", "learning_rate: 1.0e-9"),
    ],
    "grpo.yaml": [("max_steps: 60", "max_steps: 2"), ("max_new_tokens: 64", "max_new_tokens: 16")],
    "eval.yaml": [("max_new_tokens: 64", "max_new_tokens: 16")],
}
"""File -> what is written in it, and what the test writes in its place."""

PROMISED = (
    "saves/sft/model.safetensors",
    "saves/sft/training_loss.png",
    "saves/sft/packing.png",
    "saves/sft_eval/eval_completions.jsonl",
    "saves/difficulty/dataset_info.json",
    "saves/grpo/model.safetensors",
    "saves/grpo/completions.jsonl",
    "saves/grpo/report.html",
    "saves/stages.html",
    "my_model/model.safetensors",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="module")
def outputs(folder: Path) -> dict[str, str]:
    """The output of every command of the page."""
    blocks = blocks_of("tutorial.md")
    files = write_files(blocks, folder)
    for name, changes in FEWER.items():
        for written, fewer in changes:
            assert files[name].count(written) == 1, (name, written)
            files[name] = files[name].replace(written, fewer)
        (folder / name).write_text(files[name])
    commands = [command for block in blocks if block.language == "bash" for command in commands_of(block)]
    assert len(commands) > 12
    return run_commands(commands, folder)


@pytest.mark.slow
def test_every_command_runs_and_writes_what_it_promises(outputs: dict[str, str], folder: Path) -> None:
    assert [file for file in PROMISED if not (folder / file).is_file()] == []
    assert len(json.loads((folder / "data/sft.json").read_text())) == 40
    results = json.loads((folder / "saves/grpo_eval/eval_results.json").read_text())
    assert results["eval_problems"] == 12


@pytest.mark.slow
def test_the_lines_that_the_page_shows_are_those_of_the_commands(outputs: dict[str, str]) -> None:
    """Their words; numbers are those of another run."""
    printed = words("\n".join(outputs.values()))
    shown = [block.text for block in blocks_of("tutorial.md") if block.language == "text"]
    for line in "\n".join(shown).splitlines():
        assert words(line) in printed, line


def words(text: str) -> str:
    """Without digits and what stands between them."""
    return re.sub(r"[\W\d]+", " ", text).strip()
