"""A second run finds made what the first one has made, until anything changes that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_runs import AUTO, QUESTION, RESPONSE, SHAREGPT, findings, loader, picture


@pytest.fixture
def load(twin: Any, tmp_path: Path) -> Any:
    return loader(twin, tmp_path)


def test_a_second_run_finds_everything_made(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until anything changes: here a picture, then a policy."""
    from lcot_plugin.integration.conversion import RecordConverter
    from lcot_plugin.integration.tokenising import RecordTokeniser

    picture(tmp_path / "a.png", (64, 48))
    records = [{"messages": [QUESTION, RESPONSE], "images": [name]} for name in ("a.png", "late.png")]
    first, tokenizer, report = load("sft", AUTO, records)
    assert len(first) == 1 and findings(report)["missing image"]

    made: list[str] = []
    for kind in (RecordConverter, RecordTokeniser):
        original = kind.row

        def row(self: Any, *arguments: Any, original: Any = original, kind: Any = kind) -> Any:
            made.append(kind.__name__)
            return original(self, *arguments)

        monkeypatch.setattr(kind, "row", row)
    second, _, report = load("sft", AUTO)
    assert second[0] == first[0] and made == []
    assert findings(report)["missing image"], "told again from the cache"

    picture(tmp_path / "late.png")
    assert len(load("sft", AUTO)[0]) == 2
    assert "RecordConverter" in made
    made.clear()
    picture(tmp_path / "a.png", (160, 160))
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    larger, _, _ = load("sft", AUTO)
    assert larger[0]["input_ids"].count(image) > first[0]["input_ids"].count(image)
    assert set(made) == {"RecordTokeniser"}
    made.clear()
    load("sft", AUTO, cutoff_len=2047)
    assert set(made) == {"RecordTokeniser"}


@pytest.mark.parametrize(
    ("info", "name"),
    [
        (AUTO, "late.png"),
        (AUTO, "/mnt/other/machine/late.png"),
        (AUTO, "file:///mnt/other/late.png"),
        ({"records": SHAREGPT}, "late.png"),
    ],
)
def test_a_picture_that_turns_up_is_noticed(load: Any, tmp_path: Path, info: dict[str, Any], name: str) -> None:
    picture(tmp_path / "a.png")
    records = [{"messages": [QUESTION, RESPONSE], "images": [path]} for path in ("a.png", name)]
    for present in (False, True, False):
        if present:
            picture(tmp_path / "late.png")
        else:
            (tmp_path / "late.png").unlink(missing_ok=True)
        assert len(load("sft", info, records)[0]) == 1 + present
        records = None  # the file stays as it is


def test_templates_that_differ_in_their_class_only(load: Any, twin: Any) -> None:
    """`qwen3_vl` writes an empty thought where there is none, `qwen3_vl_nothink` does not."""
    records = [{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}]
    info = {"records": {**SHAREGPT, "columns": {"messages": "messages"}}}
    texts = []
    for template in ("qwen3_vl", "qwen3_vl_nothink"):
        dataset, tokenizer, _ = load("sft", info, records, template=template, model_name_or_path=str(twin("qwen3_vl")))
        texts.append(tokenizer.decode(dataset[0]["input_ids"]))
        records = None
    assert ["<think>" in text for text in texts] == [True, False]


def test_a_format_of_the_users_own_is_part_of_the_cache_key(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcot_plugin.data.formats import Format, register_format, unregister_format

    records = [{"q": "1 + 1?", "a": "2"}]
    for word in ("one", "two"):
        (tmp_path / "own_format.py").write_text(
            "from lcot_plugin.types import RawRecord, Turn\n"
            "def build(fields):\n"
            f"    return RawRecord([Turn('user', '{word} ' + fields.get('prompt'))], gold=fields.get('gold'))\n"
        )
        own: dict[str, Any] = {}
        exec(compile((tmp_path / "own_format.py").read_text(), str(tmp_path / "own_format.py"), "exec"), own)
        register_format(Format("own", "q and a", {"prompt": ("q",), "gold": ("a",)}, own["build"]))
        try:
            info = {"records": {"file_name": "records.json", "formatting": "lcot_own"}}
            dataset, _, _ = load("grpo", info, records)
        finally:
            unregister_format("own")
        records = None
        assert dataset[0]["question"] == f"{word} 1 + 1?"
