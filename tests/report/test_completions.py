import io
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lcot_plugin.report.completion_images import CompletionImages
from lcot_plugin.report.completions import (
    COMPLETIONS_FILE,
    CompletionLines,
    CompletionsLog,
    completion_line,
    image_name,
)
from lcot_plugin.report.token_trace import TokenTracer, decode
from lcot_plugin.types import Completion, Ending, Outcome, PromptRecord, Score, Verdict

RECORD = PromptRecord([1, 2, 3], ["images/a.png"], "How many?", "3", "problems", 17)
COMPLETION = Completion([5, 6], [-0.1, -0.2], Ending.STOPPED, "\\boxed{3}")
SCORE = Score({"accuracy": 1.0, "format": None}, 1.0, Verdict(Outcome.MATCHED, "3", "3", "number"))


@pytest.fixture
def log(tmp_path):
    """In a folder that does not exist yet."""
    return CompletionsLog(tmp_path / "run" / COMPLETIONS_FILE)


def read(log):
    return [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]


# --- lines ------------------------------------------------------------------------------------------------------------


def test_a_line_says_everything():
    line = completion_line(RECORD, COMPLETION, SCORE, advantage=0.7, step=4, sample=1)
    assert line == {
        "step": 4,
        "sample": 1,
        "source": "problems",
        "record": 17,
        "question": "How many?",
        "images": ["images/a.png"],
        "opening": "",
        "completion": "\\boxed{3}",
        "ending": "stopped",
        "num_tokens": 2,
        "policy_step": None,
        "extracted": "3",
        "gold": "3",
        "answer_type": "auto",
        "match": "",
        "outcome": "matched",
        "rewards": {"accuracy": 1.0, "format": None},
        "reward": 1.0,
        "advantage": 0.7,
    }
    assert list(line)[:2] == ["step", "sample"]
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_a_line_without_a_verdict():
    line = completion_line(RECORD, COMPLETION, Score({"mine": None}, None, None))
    assert line["extracted"] is line["outcome"] is line["reward"] is line["advantage"] is None


def test_image_names(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    assert image_name(str(path)) == str(path)
    assert image_name({"path": "b.png", "bytes": b"..."}) == "b.png"
    assert image_name({"path": None, "bytes": b"..."}) == "<dict in the data set>"
    assert image_name(b"...") == "<bytes in the data set>"
    with Image.open(path) as image:
        assert image_name(image) == str(path)
    assert image_name(Image.new("RGB", (2, 2))) == "<Image in the data set>"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_writing_appends(log):
    log.write([{"step": 0}])
    log.write([{"step": 1}, {"step": 1}])
    assert [line["step"] for line in read(log)] == [0, 1, 1]


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_stays_on_one_line(text, tmp_path_factory):
    """Line separators other than a newline among them: JSON leaves U+2028 as it is."""
    log = CompletionsLog(tmp_path_factory.mktemp("run") / COMPLETIONS_FILE)
    log.write([{"step": 0, "completion": text}, {"step": 1, "completion": text}])
    log.drop_from_step(1)
    (line,) = log.path.read_bytes().split(b"\n")[:-1]
    assert json.loads(line) == {"step": 0, "completion": text}


def test_text_is_readable_in_the_file(log):
    log.write([{"step": 0, "completion": "答案是 3 √2 😀"}])
    assert "答案是 3 √2 😀" in log.path.read_text(encoding="utf-8")


def test_lines_of_later_steps_are_dropped(log):
    log.write([{"step": step, "n": n} for step in (0, 2, 4) for n in range(2)])
    log.drop_from_step(2)
    assert read(log) == [{"step": 0, "n": 0}, {"step": 0, "n": 1}]
    log.write([{"step": 2, "n": 9}])
    assert [line["step"] for line in read(log)] == [0, 0, 2]
    assert [path.name for path in log.path.parent.iterdir()] == [COMPLETIONS_FILE]


def test_a_step_beyond_the_last_keeps_everything(log):
    log.write([{"step": 0}, {"step": 1}])
    before = log.path.read_bytes()
    log.drop_from_step(2)
    assert log.path.read_bytes() == before
    log.drop_from_step(0)
    assert log.path.read_bytes() == b""


def test_a_line_that_was_cut_short_is_dropped(log):
    log.write([{"step": 0, "completion": "√2"}, {"step": 1, "completion": "√2"}])
    whole = log.path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        log.path.write_bytes(whole[:end])
        log.drop_from_step(5)
        assert read(log) == [{"step": 0, "completion": "√2"}], whole[:end]
    log.write([{"step": 1, "completion": "again"}])
    assert [line["completion"] for line in read(log)] == ["√2", "again"]


def test_a_run_that_wrote_nothing(log):
    log.drop_from_step(0)
    assert not log.path.exists()


# --- what a run keeps beside the text ---------------------------------------------------------------------------------


def embedded():
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": "hub/a.png"}


def test_pictures_of_the_data_set_are_kept_and_named(tmp_path):
    lines = CompletionLines(CompletionImages(tmp_path))
    record = replace(RECORD, images=["b.png", embedded()])
    first, second = (lines(record, COMPLETION, SCORE, step=4, sample=number, advantage=0.7) for number in range(2))
    assert first["images"] == second["images"]
    assert first["images"][0] == "b.png" and (tmp_path / first["images"][1]).read_bytes() == embedded()["bytes"]
    plain = completion_line(replace(RECORD, images=["b.png"]), COMPLETION, SCORE, advantage=0.7, step=4, sample=0)
    assert {**first, "images": None} == {**plain, "images": None}, "nothing else differs"


def test_without_room_a_picture_keeps_the_name_that_it_has(tmp_path):
    (tmp_path / "completion_images").write_text("in the way")
    lines = CompletionLines(CompletionImages(tmp_path, lambda text: None))
    assert lines(replace(RECORD, images=[embedded()]), COMPLETION, SCORE)["images"] == ["hub/a.png"]


def test_log_probabilities_are_kept_where_they_are_asked_for():
    tracer = TokenTracer(lambda token_ids: "".join({5: "\\boxed", 6: "{3}"}[token_id] for token_id in token_ids))
    assert "trace" not in CompletionLines()(RECORD, COMPLETION, SCORE)
    trace = decode(CompletionLines(traces=tracer)(RECORD, COMPLETION, SCORE)["trace"])
    assert trace.lengths == [6, 3] and trace.log_probs == pytest.approx([-0.1, -0.2], abs=1 / 16)
