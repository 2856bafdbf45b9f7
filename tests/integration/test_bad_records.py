"""Records and files that cannot be used: each is told with its reason, and none takes another with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_runs import AUTO, QUESTION, RESPONSE, SHAREGPT, findings, loader, picture
from PIL import Image

from lcot_plugin.errors import ArgumentError, DataError


@pytest.fixture
def load(twin: Any, tmp_path: Path) -> Any:
    return loader(twin, tmp_path)


def test_each_bad_picture_has_its_outcome(load: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    picture(tmp_path / "secret.png")
    picture(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    names = ["good.png", "cut.png", "empty.png", "huge.png", "../secret.png", "gone.png", "/etc/passwd"]
    records = [{"messages": [QUESTION, RESPONSE], "images": [name]} for name in names]
    dataset, _, report = load("sft", AUTO, records, folder=folder)
    assert len(dataset) == 1
    found = {
        item["fault"]: [example["record"] for example in item["examples"]] for item in report["records"]["findings"]
    }
    assert found == {
        "broken image": [1, 2],
        "image too large": [3],
        "image outside media_dir": [4, 6],
        "missing image": [5],
    }
    with pytest.raises(DataError, match=r"3 of 7 records cannot be used:\n.*record 4: image outside media_dir"):
        load("sft", AUTO, records, folder=folder, bad_record_policy="error")


def test_a_column_of_mixed_types_and_a_byte_order_mark(load: Any, tmp_path: Path) -> None:
    """Text-only records first, by the thousand: `datasets` alone would type the column by them and fail."""
    picture(tmp_path / "a.png")
    records: list[dict[str, Any]] = [{"problem": f"What is {n} + 1?", "answer": n + 1} for n in range(1200)]
    records += [{"problem": "How many?", "answer": "two", "images": "a.png"}]
    records += [{"problem": "Which?", "answer": ["B"], "images": [{"path": "a.png"}]}]
    (tmp_path / "records.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(records).encode())
    dataset, _, _ = load("grpo", AUTO)
    assert dataset["gold"][:2] == ["1", "2"]
    assert dataset["gold"][-2:] == ["two", "B"]
    assert [len(images) for images in dataset["images"][-3:]] == [0, 1, 1]


def test_a_file_that_is_cut_off_says_where(load: Any, tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text('[\n{"problem": "1 + 1?", "answer": "2"},\n{"problem": "2 + ')
    with pytest.raises(DataError, match=r"records.json.*line 3"):
        load("grpo", AUTO)


def test_one_line_that_is_no_json_is_one_bad_record(load: Any, tmp_path: Path) -> None:
    lines = ['{"problem": "1 + 1?", "answer": "2"}', '{"problem": "2 + ', '{"problem": "3 + 1?", "answer": 4}']
    (tmp_path / "records.jsonl").write_text("\n".join(lines))
    info = {"records": {"file_name": "records.jsonl", "formatting": "lcot_auto"}}
    dataset, _, report = load("grpo", info)
    assert dataset["gold"][:] == ["2", "4"] and dataset["record"][:] == [0, 2]
    assert "line 2: not JSON" in findings(report)["malformed record"]
    with pytest.raises(DataError, match=r"record 1.*line 2: not JSON"):
        load("grpo", info, bad_record_policy="error")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_half_a_character_is_one_bad_record(load: Any, tmp_path: Path, suffix: str) -> None:
    r"""JSON can write half of a surrogate pair, as \ud83d, which neither Arrow nor a tokenizer takes."""
    lines = [json.dumps({"problem": f"1 + {n}?", "answer": n, "note": "\ud83d" if n == 1 else "😀"}) for n in range(3)]
    text = "\n".join(lines) if suffix == "jsonl" else f"[{', '.join(lines)}]"
    (tmp_path / f"records.{suffix}").write_text(text)
    dataset, _, report = load("grpo", {"records": {"file_name": f"records.{suffix}", "formatting": "lcot_auto"}})
    assert dataset["gold"][:] == ["0", "2"] and dataset["record"][:] == [0, 2]
    assert r"'\ud83d' is half a character" in findings(report)["malformed record"]


def test_a_role_that_no_format_reads(load: Any) -> None:
    info = {"records": {**AUTO["records"], "columns": {"promt": "question", "gold": "answer"}}}
    with pytest.raises(DataError, match=r"'promt'.*did you mean 'prompt'"):
        load("grpo", info, [{"question": "1 + 1?", "answer": "2"}])


def test_a_template_that_is_almost_there(load: Any) -> None:
    with pytest.raises(ArgumentError, match="did you mean qwen2_vl_lcot"):
        load("grpo", AUTO, [{"problem": "1 + 1?", "answer": "2"}], template="qwen2_vl_lcott")


def test_responses_are_missed_in_words(load: Any) -> None:
    with pytest.raises(DataError, match=r"read as lcot_problem.*\n.*is for stage: grpo.*lcot_solution"):
        load("sft", AUTO, [{"problem": "1 + 1?", "answer": "2"}])


def test_an_unknown_format_names_the_known_ones(load: Any) -> None:
    info = {"records": {"file_name": "records.json", "formatting": "lcot_geometry"}}
    with pytest.raises(DataError, match=r"geometry.*lcot_problem"):
        load("grpo", info, [{"problem": "1 + 1?", "answer": "2"}])


def test_a_schema_that_nothing_fits(load: Any) -> None:
    with pytest.raises(DataError, match=r"records \(records.json\).*foo"):
        load("grpo", AUTO, [{"foo": 1, "bar": 2}])


def test_a_video(load: Any, tmp_path: Path) -> None:
    import av
    import numpy as np

    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 240, 30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    asked = {"role": "user", "content": "<video>What happens?"}
    records = [
        {"messages": [asked, RESPONSE], "videos": ["a.mp4"]},
        {"messages": [asked, RESPONSE], "videos": [["frame0.png", "frame1.png"]]},
        {"messages": [{"role": "user", "content": "1 + 1?"}, RESPONSE]},
    ]
    dataset, tokenizer, report = load("sft", AUTO, records)
    assert [row["videos"] for row in dataset] == [[str(tmp_path / "a.mp4")], []]
    assert dataset[0]["input_ids"].count(tokenizer.convert_tokens_to_ids("<|video_pad|>")) > 1
    assert report["records"]["dropped"] == 1


def test_a_turn_without_text_and_tools_that_are_not_json(load: Any) -> None:
    """In LLaMA-Factory's own formats, which pass both on."""
    records = [
        {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": None}], "tools": ""},
        {"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}], "tools": "[{"},
        {"messages": [{"role": "user", "content": "Three?"}, {"role": "assistant", "content": "3"}], "tools": ""},
    ]
    info = {"records": {**SHAREGPT, "columns": {"messages": "messages", "tools": "tools"}}}
    dataset, _, report = load("sft", info, records)
    assert len(dataset) == 1 and report["records"]["dropped"] == 2
    faults = report["records"]["findings"]
    assert [(item["fault"], item["count"]) for item in faults] == [("malformed record", 2)]
    assert "content of a turn (assistant) is None" in faults[0]["examples"][0]["detail"]
    assert "Invalid JSON" in faults[0]["examples"][1]["detail"]


def test_a_placeholder_is_a_word_for_a_text_model(load: Any) -> None:
    turns = [{"role": "user", "content": "What is <image> in HTML?"}, {"role": "assistant", "content": "Obsolete."}]
    info = {"records": {**SHAREGPT, "columns": {"messages": "messages"}}}
    dataset, tokenizer, _ = load("sft", info, [{"messages": turns}], template="qwen")
    assert "What is <image> in HTML?" in tokenizer.decode(dataset[0]["input_ids"])
