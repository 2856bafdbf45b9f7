"""`lcot data stats`, `check` and `show` on a recipe with good and with spoilt data."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from twins import TWIN_TEMPLATES, write_problems

from lcot_plugin.errors import ArgumentError
from lcot_plugin.integration import data_check, data_command
from lcot_plugin.integration.data_sets import Findings, LoadedSet, load_sets, read_recipe, tokenise_set

LCOT = {"formatting": "lcot_auto", "columns": {"gold": "answer"}}


class Run:
    """A folder with a recipe and the data sets `train` and `held_out`."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        write_problems(folder, 6, num_text_only=1, num_two_images=1, name="train")
        write_problems(folder, 3, name="held_out", seed=1)
        self.recipe = folder / "recipe.yaml"
        self.keys: dict[str, Any] = {
            "model_name_or_path": str(model),
            "template": TWIN_TEMPLATES["qwen2_5_vl"],
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset": "train",
            "eval_dataset": "held_out",
            "dataset_dir": str(folder),
            "media_dir": str(folder),
            "cutoff_len": 256,
            "output_dir": str(folder / "out"),
            "overwrite_cache": True,
            # What a machine without a GPU or DeepSpeed would refuse, and what needs a launcher.
            "bf16": True,
            "deepspeed": "ds_z2.json",
            "flash_attn": "fa2",
        }
        self.write()

    def write(self, **changes: Any) -> str:
        self.keys |= changes
        self.recipe.write_text(yaml.safe_dump(self.keys))
        return str(self.recipe)

    def spoil(self, name: str, record: int, **fields: Any) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        records = json.loads(path.read_text())
        records[record] |= fields
        path.write_text(json.dumps(records))
        return records[record]

    def entry(self, name: str, **fields: Any) -> None:
        path = self.folder / "dataset_info.json"
        info = json.loads(path.read_text())
        info[name] |= fields
        path.write_text(json.dumps(info))

    def check(self) -> tuple[int, dict[str, list[Any]]]:
        """The exit code, and the records by check."""
        file = self.folder / "check.json"
        code = data_check.check(str(self.recipe), json_file=file)
        written = json.loads(file.read_text())
        assert written["ok"] is (code == 0)
        return code, {
            item["check"]: [(entry["source"], entry["record"]) for entry in item["entries"]]
            for item in written["checks"]
            if item["count"]
        }


@pytest.fixture
def run(tmp_path: Path, twin: Any) -> Run:
    return Run(tmp_path, twin("qwen2_5_vl"))


@pytest.mark.parametrize("formatting", [{}, LCOT], ids=["alpaca", "lcot_auto"])
def test_stats_counts_every_token_once(
    formatting: dict[str, Any], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    if formatting:
        run.entry("train", **formatting)
    recipe = read_recipe(str(run.recipe))
    loaded = next(load_sets(recipe, Findings()))
    assert isinstance(loaded, LoadedSet)
    tokens, _ = tokenise_set(recipe, loaded, Findings())
    counts = data_command.measure(recipe, "train", tokens).counts
    assert counts["total"].tolist() == [len(ids) for ids in tokens["input_ids"]]
    assert (sum(counts[kind] for kind in counts if kind != "total") == counts["total"]).all()
    image_token = recipe.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert counts["image"].tolist() == [ids.count(image_token) for ids in tokens["input_ids"]]
    assert counts["image"][0] == 0 and (counts["image"][1:] > 0).all()
    for ids, labels, thought, answer in zip(
        tokens["input_ids"], tokens["labels"], counts["thought"], counts["answer"], strict=True
    ):
        response = [token for token, label in zip(ids, labels, strict=True) if label != -100]
        assert thought + answer == len(response)
        assert recipe.tokenizer.decode(response[:thought]).rstrip().endswith("</think>")
        assert recipe.tokenizer.decode(response[thought:]).strip().startswith("\\boxed")

    out, cutoff_len = run.folder / "stats", int(counts["total"].max()) - 1
    longer = int((counts["total"] > cutoff_len).sum())
    assert data_command.stats(str(run.recipe), [f"cutoff_len={cutoff_len}"], out=out) == 0
    printed = capsys.readouterr().out
    assert f"{cutoff_len} (yours)" in printed and "longer than cutoff_len" in printed
    with Image.open(out / "lengths.png") as image:
        assert image.width == 1200
    written = json.loads((out / "lengths.json").read_text())
    assert set(written) == {"train", "held_out"}
    assert written["train"]["longer_than"][str(cutoff_len)] == longer
    report = json.loads((out / "data_report.json").read_text())
    assert report["train"]["dropped"] == longer, "what training with this cutoff leaves out"


def test_what_truncate_saves_is_told_from_what_it_drops(run: Run) -> None:
    long = "Let me count again. " * 40
    run.spoil("train", 0, response=f"<think>\n{long}\n</think>\n\n\\boxed{{3}}")
    run.spoil("train", 1, problem="<image><image>" + long)
    out = run.folder / "stats"
    assert data_command.stats(run.write(overlong_policy="truncate"), out=out) == 0
    findings = json.loads((out / "data_report.json").read_text())["train"]["findings"]
    assert {item["handling"]: item["examples"][0]["record"] for item in findings} == {"truncated": 0, "dropped": 1}


def test_stats_of_prompts(run: Run) -> None:
    out = run.folder / "stats"
    run.write(stage="grpo", do_train=False, dataset=None)
    assert data_command.stats(str(run.recipe), out=out) == 0
    written = json.loads((out / "lengths.json").read_text())
    assert set(written) == {"held_out"}
    assert set(written["held_out"]["tokens"]) == {"prompt", "image", "total"}


def test_a_set_that_cannot_be_read_does_not_hide_the_others(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.folder / "train.json").write_text("[]")
    out = run.folder / "stats"
    assert data_command.stats(str(run.recipe), out=out) == 1
    assert "train (train.json) is empty" in capsys.readouterr().err
    assert set(json.loads((out / "lengths.json").read_text())) == {"held_out"}
    code, found = run.check()
    assert code == 1
    assert found["data sets that cannot be read or tokenised"] == [("train", None)]
    report = json.loads((out / "data_report.json").read_text())
    assert report["train"]["kept"] == 0 and "is empty" in report["train"]["error"]
    assert "error" not in report["held_out"]


def test_a_set_of_unusable_records_is_told_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.entry("train", **LCOT)
    for record in range(6):
        run.spoil("train", record, images=["gone.png"], problem="<image>How many?")
    code, found = run.check()
    assert code == 1
    assert found["data sets that cannot be read or tokenised"] == [("train", None)]
    assert found["records dropped, missing image"] == [("train", record) for record in range(6)]
    out, err = capsys.readouterr()
    printed = out + err
    assert "train records 0-5: " in printed
    assert printed.count("check that media_dir is") == 1
    assert [line.split()[:3] for line in printed.splitlines() if line.startswith("train ")][-1] == ["train", "6", "0"]


def test_good_data_pass(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"prompt": "problem", "response": "response", "images": "images", "gold": "answer"}
    for name in ("train", "held_out"):
        run.entry(name, columns=columns)
    assert run.check() == (0, {})
    printed = capsys.readouterr().out
    assert printed.splitlines()[-2] == "nothing is wrong"
    assert "ok     gold answers score 1.0 under their own verifier (9)" in printed
    assert "ok     responses agree with their gold answers (9)" in printed
    assert "skip" not in printed


def test_a_check_of_nothing_is_no_success(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.write(eval_dataset=None)
    run.entry("train", columns={"prompt": "problem", "response": "response", "images": "images"})
    assert run.check() == (0, {})
    printed = capsys.readouterr().out
    assert "skip   gold answers: no record has a gold answer; stage sft needs none" in printed
    assert "skip   problems of training and evaluation: nothing to check" in printed
    assert "skip   images of training and evaluation: nothing to check" in printed


def test_own_system_prompts_are_a_note(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.entry("train", columns={"system": "system", "gold": "answer"}, formatting="lcot_auto")
    run.write(template=f"{TWIN_TEMPLATES['qwen2_5_vl']}_lcot", cutoff_len=512)
    for record in range(6):
        run.spoil("train", record, system="Answer in French." if record == 1 else "")
    code, found = run.check()
    title = "records that bring their own system prompt, which takes the place of cot_format's"
    assert (code, found) == (0, {title: [("train", 1)]})
    printed = capsys.readouterr().out
    assert f"note   {title}: 1\n         train record 1\n" in printed
    assert printed.splitlines()[-2] == "nothing is wrong; 1 note above"
    assert "train: " in printed, "what lcot_auto decided"
    assert "system prompt" not in checks_printed(run, capsys, default_system="Think.")


def checks_printed(run: Run, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    run.write(**changes)
    run.check()
    return capsys.readouterr().out


@pytest.mark.parametrize("identical", [True, False])
def test_only_identical_pictures_contradict(identical: bool, run: Run) -> None:
    columns = {"prompt": "problem", "response": "response", "images": "images", "gold": "answer"}
    run.entry("train", columns=columns)
    with Image.open(run.folder / "train_4_0.png") as image:
        copy = image.convert("RGB")
    if not identical:
        copy.putpixel((0, 0), (1, 2, 3))
    copy.save(run.folder / "train_4_0.png" if identical else run.folder / "copy.png")
    kept = run.spoil("train", 4)
    shutil.copy(run.folder / "train_4_0.png", run.folder / "same.png")
    other = {"answer": "77", "response": "<think>\nHm.\n</think>\n\n\\boxed{77}"}
    run.spoil("train", 5, **{**kept, **other, "images": ["same.png" if identical else "copy.png"]})
    _, found = run.check()
    contradiction = "problems that stand in the data with different gold answers"
    alike = "problems with the same question and different gold answers whose pictures look alike (not identical)"
    assert found == {contradiction if identical else alike: [("train", 4)]}


def damaged(path: Path) -> None:
    """A file that is whole at both ends, which is all that tokenising looks at."""
    contents = bytearray(path.read_bytes())
    middle = len(contents) // 2
    contents[middle : middle + 200] = bytes(200)
    path.write_bytes(contents)


@pytest.mark.parametrize("formatting", [{}, LCOT], ids=["alpaca", "lcot_auto"])
def test_check_finds_everything_in_one_go(
    formatting: dict[str, Any], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "held_out"):
        columns = {"prompt": "problem", "response": "response", "images": "images"}
        run.entry(name, **{"columns": {**columns, "gold": "answer", "answer_type": "kind"}, **formatting})
        for record in range(6 if name == "train" else 3):
            run.spoil(name, record, kind="number")
    lcot = bool(formatting)
    if lcot:
        for name in ("train", "held_out"):
            run.entry(name, columns={"gold": "answer", "answer_type": "kind"})
    run.spoil("train", 0, response="<think>\nHm.\n</think>\n\n\\boxed{77}")
    run.spoil("train", 1, images=["train_1_0.png", "gone.png"])
    run.spoil("train", 2, answer="many", response="<think>\nHm.\n</think>\n\n\\boxed{many}")
    damaged(run.folder / "train_3_0.png")
    kept = run.spoil("train", 4)
    copy = io.BytesIO()
    with Image.open(run.folder / "train_4_0.png") as image:
        image.save(copy, "PNG", compress_level=1)
    (run.folder / "copy.png").write_bytes(copy.getvalue())
    run.spoil("train", 5, **{**kept, "images": ["copy.png"]})
    shutil.copy(run.folder / "copy.png", run.folder / "held_out_2_0.png")
    run.spoil("held_out", 2, answer=kept["answer"], response=kept["response"])

    code, found = run.check()
    assert code == 1
    contradicting = (
        "records dropped, answer contradicts gold" if lcot else "responses that contradict their gold answer"
    )
    assert found[contradicting] == [("train", 0)]
    assert found["records dropped, missing image"] == [("train", 1)]
    assert found["gold answers that do not score 1.0 under their own verifier"] == [("train", 2)]
    assert found["images that cannot be decoded"] == [("train", 3)]
    assert found["problems that stand in the data more than once"] == [("train", 4)]
    assert found["problems of evaluation that training has too"] == [("held_out", 2)]
    printed = capsys.readouterr().out
    assert "also train record 4, train record 5" in printed
    assert printed.count("WRONG") == 5


def test_check_names_pictures_that_a_model_sees_otherwise(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with Image.open(run.folder / "train_4_0.png") as image:
        drawing = Image.new("RGBA", image.size, (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (0, 0, 4, 4))
    drawing.save(run.folder / "train_4_0.png")
    code, found = run.check()
    title = "images with transparent parts, which a model sees in the colour beneath them, black as a rule"
    assert code == 0 and found == {title: [("train", 4)]}
    printed = capsys.readouterr().out
    assert f"note   {title}: 1" in printed and "> Put it on white" in printed


def test_check_survives_the_template_of_another_family(run: Run) -> None:
    run.write(template="llava")
    code, found = run.check()
    assert code == 1
    assert found["differences between the template and the model's chat template"] == [("template llava", None)]
    assert found["data sets that cannot be read or tokenised"] == [("train", None), ("held_out", None)]
    assert data_command.stats(str(run.recipe), out=run.folder / "stats") == 1
    report = json.loads((run.folder / "stats" / "data_report.json").read_text())
    assert [(entry["kept"], "tokenising fails" in entry["error"]) for entry in report.values()] == [(0, True)] * 2


def test_show_prints_a_record_and_writes_its_page(run: Run) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    page = run.folder / "record.html"
    plain, coloured = io.StringIO(), Terminal()
    assert data_command.show(str(run.recipe), record=2, html=page, stream=plain) == 0
    text = plain.getvalue()
    answer = run.spoil("train", 2)["answer"]
    assert text.startswith("train, record 2\n")
    assert f"gold: {answer} (auto)" in text
    assert f"the response states '{answer}': matched" in text
    assert "<|vision_start|>[image: " in text
    assert f"in the loss]\n<think>\nLet me count: {answer}.\n</think>" in text
    assert "\x1b" not in text
    assert page.read_text().count("data:image/") == 1
    assert text.splitlines()[-1] == str(page)
    with pytest.raises(ArgumentError, match="there is no folder"):
        data_command.show(str(run.recipe), html=run.folder / "gone" / "record.html", stream=plain)
    assert data_command.show(str(run.recipe), datasets="held_out", stream=coloured) == 0
    assert coloured.getvalue().startswith("held_out, record 0\n")
    assert "\x1b[32m<think>" in coloured.getvalue()


def test_no_color_is_respected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert data_command.show(str(run.recipe), stream=stream) == 0
    assert "\x1b" not in stream.getvalue()


def test_show_a_record_that_training_leaves_out(run: Run) -> None:
    stream = io.StringIO()
    assert data_command.show(str(run.recipe), ["cutoff_len=20"], record=2, stream=stream) == 0
    assert "finding: longer than cutoff_len: " in stream.getvalue()
    assert "</think>" in stream.getvalue(), "it is shown whole"
    run.spoil("train", 2, images=["gone.png"])
    for formatting in ({}, LCOT):
        run.entry("train", **formatting)
        stream, page = io.StringIO(), run.folder / "record.html"
        assert data_command.show(str(run.recipe), record=2, html=page, stream=stream) == 0
        text = stream.getvalue()
        assert text.startswith("train, record 2\nleft out: no tokens\n")
        assert "finding: missing image: " in text and "(dropped)" in text
        assert '"images": [\n    "gone.png"\n  ]' in text
        assert "&quot;gone.png&quot;" in page.read_text() and "<script>" not in page.read_text()
    with pytest.raises(ArgumentError, match="train has no record 6: they are numbered from 0 to 5"):
        data_command.show(str(run.recipe), record=6, stream=stream)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "dpo"}, "reads the data of sft and grpo, not of stage dpo"),
        ({"cutof_len": 3}, r"recipe.yaml: no argument is called cutof_len: did you mean cutoff_len\?"),
        ({"dataset": None, "eval_dataset": None}, "neither `dataset` nor `eval_dataset`"),
        ({"template": "no_such_template"}, "no_such_template"),
        ({"overlong_policy": "shorten"}, "overlong_policy"),
    ],
)
def test_a_recipe_that_cannot_work(changes: dict[str, Any], message: str, run: Run) -> None:
    with pytest.raises(ArgumentError, match=message):
        data_command.stats(run.write(**changes))


def test_there_must_be_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"There is no file .*gone\.yaml"):
        read_recipe(str(tmp_path / "gone.yaml"))


def test_a_misspelt_override_is_not_blamed_on_the_file(run: Run) -> None:
    with pytest.raises(ArgumentError, match=r"^command line: no argument is called cutof_len: did you mean cutoff_len"):
        read_recipe(str(run.recipe), ["cutof_len=3"])


def test_a_gold_answer_that_the_response_states(run: Run) -> None:
    run.entry("train", formatting="lcot_auto", columns={})
    answer = run.spoil("train", 2)["answer"]
    path = run.folder / "train.json"
    records = [{key: value for key, value in row.items() if key != "answer"} for row in json.loads(path.read_text())]
    path.write_text(json.dumps(records))
    stream = io.StringIO()
    assert data_command.show(str(run.recipe), record=2, stream=stream) == 0
    assert f"gold: {answer} (taken from the response)" in stream.getvalue()
    assert "\ndata set: " in stream.getvalue(), "what lcot_auto decided"
