"""From files of any schema to tokens: nothing is lost without being counted, nothing is decoded, nothing done twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data.public_sets import PUBLIC_SETS, Expected, PublicSet
from PIL import Image
from twins import write_problems

from lcot_plugin.data.gold import gold_text
from lcot_plugin.errors import ArgumentError, DataError
from lcot_plugin.rewards import extract_answer, verify

WITH_RESPONSES = [
    public for public in PUBLIC_SETS.values() if any(expected.answer is not None for expected in public.expected)
]
QUESTION = {"role": "user", "content": "<image>How many?"}
RESPONSE = {"role": "assistant", "content": "<think>\nOne, two.\n</think>\n\n\\boxed{2}"}


@pytest.fixture
def load(twin: Any, tmp_path: Path) -> Any:
    """`load("sft", entry, records)`: what training on these records would get, its tokenizer and its data report."""

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


# --- every public schema ----------------------------------------------------------------------------------------------


def write_all(sets: list[PublicSet], folder: Path, formatting: str | None) -> None:
    info = {}
    for public in sets:
        entry = public.write(folder / public.name)
        entry["file_name"] = f"{public.name}/{entry['file_name']}"
        info[public.name] = {**entry, "formatting": formatting or entry["formatting"]}
        if formatting:
            info[public.name].pop("columns", None)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for public in sets:  # pictures are looked up in one media_dir
        for path in (folder / public.name).rglob("*"):
            if path.is_file() and path.suffix in (".png", ".jpg"):
                target = folder / path.relative_to(folder / public.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())


def every_record(sets: list[PublicSet]) -> list[tuple[PublicSet, Expected]]:
    return [(public, expected) for public in sets for expected in public.expected]


def written(expected: Expected) -> str:
    return expected.question.replace("<image>", "").strip()


@pytest.mark.parametrize("formatting", [None, "lcot_auto"], ids=["named", "auto"])
def test_every_public_set_in_one_sft_run(load: Any, tmp_path: Path, formatting: str | None) -> None:
    """All of them joined: paths, bytes and base64, none, one and several pictures."""
    write_all(WITH_RESPONSES, tmp_path, formatting)
    names = ",".join(public.name for public in WITH_RESPONSES)
    dataset, tokenizer, _ = load("sft", datasets=names)
    records = [(public, expected) for public, expected in every_record(WITH_RESPONSES) if expected.answer is not None]
    assert len(dataset) == len(records)
    for row, (public, expected) in zip(dataset, records, strict=True):
        text = tokenizer.decode(row["input_ids"])
        response = tokenizer.decode([label for label in row["labels"] if label != -100])
        assert written(expected) in re.sub(r"<\|vision_start\|>.*?<\|vision_end\|>", "", text), public.name
        assert len(row["images"]) == text.count("<|vision_start|>") == expected.images, public.name
        assert "<think>" in response or not expected.thought, public.name
        assert response.endswith("<|im_end|>\n") or response.endswith("<|im_end|>"), public.name
        found = extract_answer(response.rstrip("\n").removesuffix("<|im_end|>").rpartition("<|im_end|>")[2])
        assert found is not None and verify(rf"\boxed{{{found.answer}}}", expected.answer).matched, public.name


@pytest.mark.parametrize("formatting", [None, "lcot_auto"], ids=["named", "auto"])
def test_every_public_set_in_one_grpo_run(load: Any, tmp_path: Path, formatting: str | None) -> None:
    sets = list(PUBLIC_SETS.values())
    write_all(sets, tmp_path, formatting)
    dataset, tokenizer, _ = load("grpo", datasets=",".join(PUBLIC_SETS))
    records = [(p, e) for p, e in every_record(sets) if e.gold is not None or e.answer is not None]
    assert len(dataset) == len(records)
    for row, (public, expected) in zip(dataset, records, strict=True):
        assert row["source"] == public.name
        assert written(expected) in row["question"].replace("<image>", ""), public.name
        assert len(row["images"]) == expected.images, public.name
        assert tokenizer.decode(row["input_ids"]).endswith("<|im_start|>assistant\n"), public.name
        wanted = gold_text(expected.gold) if expected.gold is not None else expected.answer
        assert row["gold"] == wanted or verify(rf"\boxed{{{row['gold']}}}", wanted).matched, public.name


# --- bad input --------------------------------------------------------------------------------------------------------


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


# --- responses --------------------------------------------------------------------------------------------------------

THOUGHT = "I count the legs one by one, then I check the sum again. " * 3


def traces() -> list[dict[str, Any]]:
    responses = {
        "whole": (f"<think>\n{THOUGHT}\n</think>\n\nSo \\boxed{{4}}.", 4),
        "unclosed": (f"<think>\n{THOUGHT}", 4),
        "unclosed, no gold": (f"<think>\n{THOUGHT}", None),
        "contradicts": (f"<think>\n{THOUGHT}\n</think>\n\nSo \\boxed{{5}}.", 4),
        "short": ("4", 4),
    }
    return [
        {"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": text}], "solution": gold}
        for name, (text, gold) in responses.items()
    ]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("keep", ["whole", "unclosed", "unclosed, no gold", "contradicts", "short"]),
        ("repair", ["whole", "unclosed", "short"]),
        ("drop", ["whole"]),
    ],
)
def test_malformed_traces_by_policy(load: Any, policy: str, kept: list[str]) -> None:
    dataset, tokenizer, report = load("sft", AUTO, traces(), malformed_trace_policy=policy)
    texts = [tokenizer.decode(row["input_ids"]) for row in dataset]
    assert [text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0] for text in texts] == kept
    assert report["records"]["dropped"] == len(traces()) - len(kept)
    if policy == "repair":
        assert "</think>" in texts[1] and "\\boxed{4}" in texts[1]
        assert findings(report)["answer contradicts gold"].startswith("dropped")


@pytest.mark.parametrize(
    ("cot_format", "ending"),
    [("think_boxed", "</think>\n\nSo \\boxed{4}."), ("think_answer", "<answer>4</answer>"), ("native", "\\boxed{4}.")],
)
def test_target_formats(load: Any, cot_format: str, ending: str) -> None:
    dataset, tokenizer, _ = load("sft", AUTO, traces()[:1], cot_format=cot_format)
    response = tokenizer.decode([label for label in dataset[0]["labels"] if label != -100])
    assert response.startswith("<think>\n") and response.rstrip().removesuffix("<|im_end|>").endswith(ending)


# --- length -----------------------------------------------------------------------------------------------------------


def test_truncation_cuts_the_thought_only(load: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (160, 160))
    long = f"<think>\n{THOUGHT * 20}\n</think>\n\nSo \\boxed{{4}}."
    messages = [QUESTION, {"role": "assistant", "content": long}]
    records = [
        {"messages": messages, "images": ["a.png"]},
        {"messages": [QUESTION, RESPONSE], "images": ["a.png"]},
        # Too long without its thought: the answer would have to be cut.
        {"messages": [{"role": "user", "content": "How many? " * 300}, RESPONSE], "images": []},
    ]
    dataset, tokenizer, report = load("sft", AUTO, records, cutoff_len=300, overlong_policy="truncate")
    assert len(dataset) == 2
    whole, _, _ = load("sft", AUTO, records[:1])
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    row = dataset[0]
    assert 200 < len(row["input_ids"]) <= 300
    assert row["input_ids"].count(image) == whole[0]["input_ids"].count(image) > 10
    response = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert response.startswith("<think>\nI count the legs")
    assert response.rstrip().endswith("\n</think>\n\nSo \\boxed{4}.<|im_end|>")
    assert len(row["labels"]) == len(row["input_ids"]) == len(row["attention_mask"])
    counts = {(item["fault"], item["handling"]): item["count"] for item in report["records"]["findings"]}
    assert counts == {("longer than cutoff_len", "truncated"): 1, ("longer than cutoff_len", "dropped"): 1}


# --- equal to LLaMA-Factory, and fast ---------------------------------------------------------------------------------

ALONE = """
import json, sys
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
arguments = json.loads(sys.argv[1])
model_args, data_args, training_args, _, _ = get_train_args(arguments)
module = load_tokenizer(model_args)
template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
print("ROWS" + json.dumps([[row["input_ids"], row["labels"]] for row in dataset]))
"""


@pytest.mark.parametrize("packing", [{}, {"neat_packing": True, "cutoff_len": 400}], ids=["rows", "packed"])
def test_the_tokens_are_those_of_llamafactory_alone(
    load: Any, twin: Any, tmp_path: Path, packing: dict[str, Any]
) -> None:
    write_problems(tmp_path, 6, num_text_only=2, num_two_images=1)
    arguments = {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": "qwen2_vl",
        "stage": "sft",
        "do_train": True,
        "dataset": "problems",
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "alone"),
        "report_to": "none",
        "use_cpu": True,
        **packing,
    }
    environment = {**os.environ, "LCOT_PLUGIN": "0", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", ALONE, json.dumps(arguments)]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert output.returncode == 0, output.stderr[-2000:]
    rows = json.loads(next(line[4:] for line in output.stdout.splitlines() if line.startswith("ROWS")))
    dataset, _, _ = load("sft", datasets="problems", **packing)
    assert [[row["input_ids"], row["labels"]] for row in dataset] == rows


def test_no_picture_is_decoded(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    write_problems(tmp_path, 4, num_two_images=1)

    def load_pixels(self: Any) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load_pixels)
    for stage in ("sft", "grpo"):
        dataset, _, _ = load(stage, datasets="problems")
        assert len(dataset) == 4


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


@pytest.mark.parametrize("strategy", ["interleave_under", "interleave_over"])
def test_the_counts_add_up_where_sets_are_mixed(load: Any, tmp_path: Path, strategy: str) -> None:
    info = {}
    for name, num in (("few", 3), ("many", 12)):
        questions = [f"{n}? " * (300 if n == 2 else 1) for n in range(num)]
        records = [{"messages": [{"role": "user", "content": question}, RESPONSE]} for question in questions]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
        info[name] = {"file_name": f"{name}.json", "formatting": "lcot_auto"}
    dataset, _, report = load(
        "sft", info, datasets="few,many", cutoff_len=200, mix_strategy=strategy, interleave_probs="0.5,0.5"
    )
    assert len(dataset) == sum(entry["kept"] for entry in report.values())
    assert any(entry["mixed_in"] for entry in report.values())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_several_processes_make_the_same(load: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    records = [{"messages": [QUESTION, RESPONSE], "images": ["a.png"]} for _ in range(7)]
    records[3]["images"] = ["gone.png"]
    alone, _, _ = load("sft", AUTO, records, overwrite_cache=True)
    shared, _, report = load("sft", AUTO, records, preprocessing_num_workers=2, overwrite_cache=True)
    assert shared.to_dict() == alone.to_dict() and len(alone) == 6
    assert findings(report)["missing image"].startswith("dropped")


def test_streams_lose_nothing_silently_either(load: Any, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    records = [{"messages": [QUESTION, RESPONSE], "images": [name]} for name in ("a.png", "gone.png", "a.png")]
    stream, tokenizer, _ = load("sft", AUTO, records, streaming=True, max_steps=1, dataloader_num_workers=1)
    rows = list(stream)
    assert len(rows) == 2
    assert set(rows[0]) == {"input_ids", "attention_mask", "labels", "images", "videos", "audios"}
    assert "\\boxed{2}" in tokenizer.decode(rows[0]["input_ids"])
    with pytest.raises(ArgumentError, match="dataloader_num_workers: 1"):
        load("sft", AUTO, records, streaming=True, max_steps=1, dataloader_num_workers=0)


def test_streams_of_any_kind_can_be_joined(load: Any, tmp_path: Path) -> None:
    """Paths in LLaMA-Factory's format, pictures in a parquet file, paths in ours; none is decoded and encoded anew."""
    from datasets import Dataset, Features, Image, Sequence, Value

    picture(tmp_path / "a.png")
    records = [{"messages": [QUESTION, RESPONSE], "images": ["a.png"]} for _ in range(2)]
    contents = (tmp_path / "a.png").read_bytes()
    Dataset.from_dict(
        {"q": ["<image>How many?"], "a": [RESPONSE["content"]], "images": [[{"bytes": contents, "path": None}]]},
        features=Features({"q": Value("string"), "a": Value("string"), "images": Sequence(Image())}),
    ).to_parquet(str(tmp_path / "pictures.parquet"))
    columns = {"prompt": "q", "response": "a", "images": "images"}
    info = {
        "records": SHAREGPT,
        "ours": {"file_name": "records.json", "formatting": "lcot_auto"},
        "pictures": {"file_name": "pictures.parquet", "columns": columns},
    }
    stream, _, _ = load(
        "sft", info, records, datasets="records,ours,pictures", streaming=True, max_steps=1, dataloader_num_workers=1
    )
    images = [row["images"][0] for row in stream]
    assert len(images) == 5
    assert sum(image["bytes"] == contents for image in images) == 1
    assert sum(image["path"] == str(tmp_path / "a.png") for image in images) == 4
