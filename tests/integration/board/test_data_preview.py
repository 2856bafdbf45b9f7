"""Records of the chosen data sets in the Board: the embedded model's template and processor on the demo data."""

import html
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lcot_plugin.integration.board import data_preview
from lcot_plugin.integration.board.data_preview import FIRST, preview_of, show

ROOT = Path(__file__).resolve().parents[3]
CHOSEN = {"top.model_path": "chosen", "train.dataset": ["chosen"]}


@pytest.fixture(autouse=True)
def forget() -> None:
    data_preview._kept.clear()


def engine(**changed: Any) -> Any:
    """A Board whose components would start this run."""
    arguments = {
        **{"stage": "grpo", "do_train": True, "model_name_or_path": str(ROOT / "lcot_plugin/demo/model")},
        **{"template": "qwen2_vl", "finetuning_type": "lora", "dataset": "demo_rl", "bf16": True, "packing": False},
        **{
            "dataset_dir": str(ROOT / "dataset_info"),
            "cutoff_len": 512,
            "output_dir": "saves/x",
            "max_samples": 100000,
        },
        **{"preprocessing_num_workers": 16, "val_size": 0.1, "eval_strategy": "steps", **changed},
    }
    return SimpleNamespace(
        manager=SimpleNamespace(get_elem_by_id=lambda name: name),
        runner=SimpleNamespace(_parse_train_args=lambda data: arguments),
    )


def page_of(frame: str) -> str:
    """The page within the frame."""
    assert frame.startswith("<iframe sandbox=")
    return html.unescape(frame.partition('srcdoc="')[2].partition('" style=')[0])


def own_set(folder: Path, records: list[dict[str, Any]], **entry: Any) -> str:
    (folder / "own.json").write_text(json.dumps(records))
    columns = {"prompt": "question", "response": "answer"}
    info = {"own": {"file_name": "own.json", "formatting": "alpaca", "columns": columns, **entry}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(folder)


def test_a_prompt_of_grpo_with_its_picture_and_gold_answer() -> None:
    place, note, frame = show(engine(), CHOSEN, "en", 0)
    assert (place, f"Record 1 of the first {FIRST} (demo_rl)" in note) == (0, True)
    page = page_of(frame)
    assert "data:image/" in page
    assert "[image:" in page and "0 in the loss" in page
    assert "the gold answer scores 1.0" in page


def test_next_and_previous_stay_within_the_records() -> None:
    board = engine()
    assert show(board, CHOSEN, "en", 1)[0] == 1
    assert show(board, CHOSEN, "en", FIRST + 7)[0] == FIRST - 1
    assert show(board, CHOSEN, "en", -1)[0] == 0


def test_the_loss_mask_of_sft() -> None:
    _, _, frame = show(engine(stage="sft", dataset="demo_sft_long"), CHOSEN, "ru", 0)
    page = page_of(frame)
    assert '<span class="y"' in page and '<span class="n"' in page


def test_a_record_that_is_left_out_is_shown_with_the_reason(tmp_path: Path) -> None:
    records = [
        {"question": "<image>\n<b>one</b>?", "answer": "1", "pictures": [str(tmp_path / "missing.png")]},
        {"question": "two?", "answer": "2", "pictures": []},
    ]
    columns = {"prompt": "question", "response": "answer", "images": "pictures", "gold": "answer"}
    folder = own_set(tmp_path, records, columns=columns)
    board = engine(dataset="own", dataset_dir=folder)
    page = page_of(show(board, CHOSEN, "en", 0)[2])
    assert "missing.png" in page and "left out: no tokens" in page
    assert "<b>one</b>" not in page
    assert "two?" in page_of(show(board, CHOSEN, "en", 1)[2])


def test_several_sets_one_of_them_unreadable(tmp_path: Path) -> None:
    folder = own_set(tmp_path, [{"question": "two?", "answer": "2"}])
    board = engine(stage="sft", dataset="nowhere,own", dataset_dir=folder)
    place, note, frame = show(board, CHOSEN, "en", 0)
    assert (place, frame) == (0, "")
    assert "nowhere cannot be shown" in note and "alert" in note
    assert "(own)" in show(board, CHOSEN, "en", 1)[1]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"template": "nope"}, "Template nope does not exist"),
        ({"model_name_or_path": "/no/where"}, "There is no folder /no/where"),
        ({"frobnicate": 1}, "no argument is called frobnicate"),
        ({"stage": "dpo"}, "for GRPO and supervised"),
        ({"dataset": "nope"}, "Undefined dataset nope"),
    ],
)
def test_what_is_wrong_is_told_in_words(changed: dict[str, Any], told: str) -> None:
    _, note, frame = show(engine(**changed), CHOSEN, "en", 3)
    assert told in html.unescape(note) and frame == ""
    assert "/tmp" not in note and "settings.yaml" not in note


def test_settings_that_are_no_run_s(monkeypatch: pytest.MonkeyPatch) -> None:
    board = engine()
    assert "Choose a model" in show(board, {**CHOSEN, "train.dataset": []}, "en", 0)[1]

    def wrong(data: Any) -> Any:
        raise ValueError("could not convert string to float: 'abc'")

    board.runner._parse_train_args = wrong
    assert "abc" in show(board, CHOSEN, "en", 0)[1]


def test_a_library_that_fails_in_its_own_way_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no <processor> for this model")

    monkeypatch.setattr(data_preview, "preview_of", fails)
    place, note, frame = show(engine(), CHOSEN, "en", 3)
    assert (place, frame) == (0, "")
    assert "RuntimeError: no &lt;processor&gt; for this model" in note and 'role="alert"' in note


def test_a_preview_is_made_once_and_anew_when_asked(tmp_path: Path) -> None:
    folder = own_set(tmp_path, [{"question": "one?", "answer": "1"}])
    board = engine(stage="sft", dataset="own", dataset_dir=folder)
    show(board, CHOSEN, "en", 0)
    (made,) = data_preview._kept.values()
    show(board, CHOSEN, "en", 1)
    assert list(data_preview._kept.values()) == [made]
    own_set(tmp_path, [{"question": "changed?", "answer": "1"}])
    assert "changed?" in page_of(show(board, CHOSEN, "en", 0, anew=True)[2])
    assert len(data_preview._kept) == 1


def test_the_board_s_chat_does_not_hear_of_the_cpu() -> None:
    from accelerate import PartialState

    before = dict(PartialState._shared_state)
    preview_of(engine().runner._parse_train_args({}))
    assert dict(PartialState._shared_state) == before
