"""Formats: each public set's schema reads as what its records say; what no schema allows is named."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data.public_sets import PUBLIC_SETS, PublicSet
from PIL import Image

from lcot_plugin.data.formats import (
    Fields,
    Format,
    format_names,
    get_format,
    register_format,
    unregister_format,
)
from lcot_plugin.data.samples import to_sample
from lcot_plugin.errors import ArgumentError, DataError, RecordError
from lcot_plugin.types import RawRecord, RecordFault, Turn

ALL_SETS = list(PUBLIC_SETS.values())
QUESTION_ONLY = {"problem": "What is x?"}


def read(name: str, record: dict[str, Any], **columns: str) -> RawRecord:
    return get_format(name).read(record, columns)


def fault(name: str, record: dict[str, Any], **columns: str) -> str:
    with pytest.raises(RecordError) as caught:
        read(name, record, **columns)
    assert caught.value.fault is RecordFault.MALFORMED
    return caught.value.detail


@pytest.mark.parametrize("data_set", ALL_SETS, ids=lambda data_set: data_set.name)
def test_public_set(data_set: PublicSet, tmp_path: Path) -> None:
    entry = data_set.write(tmp_path)
    chosen = get_format(entry["formatting"])
    records = data_set.read(tmp_path)
    for record, expected in zip(records, data_set.expected, strict=True):
        raw = chosen.read(record, entry.get("columns", {}))
        assert [turn.role for turn in raw.turns] == ["user", "assistant"] * (len(raw.turns) // 2) + ["user"] * (
            len(raw.turns) % 2
        )
        has_response = len(raw.turns) % 2 == 0
        assert has_response == (expected.answer is not None)
        assert len(raw.turns) == expected.earlier_turns + 1 + has_response
        assert expected.question in raw.turns[expected.earlier_turns].content
        assert len(raw.images) == expected.images
        assert (raw.gold, type(raw.gold)) == (expected.gold, type(expected.gold))
        assert tuple(raw.options) == expected.options


@pytest.mark.parametrize("data_set", ALL_SETS, ids=lambda data_set: data_set.name)
def test_public_set_becomes_samples(data_set: PublicSet, tmp_path: Path) -> None:
    entry = data_set.write(tmp_path)
    for record, expected in zip(data_set.read(tmp_path), data_set.expected, strict=True):
        sample = to_sample(get_format(entry["formatting"]).read(record, entry.get("columns", {})), tmp_path)
        assert [_opens(image) for image in sample.images] == [True] * expected.images
        turns = [*(turn.content for turn in sample.history if turn.role == "user"), sample.question]
        assert sum(turn.count("<image>") for turn in turns) == expected.images
        if expected.answer is None:
            assert sample.trace is None
            continue
        assert sample.trace is not None
        assert (sample.trace.thought is not None, sample.trace.answer) == (expected.thought, expected.answer)
        assert "<image>" not in f"{sample.trace.thought}{sample.trace.conclusion}"


def _opens(image: str | bytes) -> bool:
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        opened.load()
        return opened.width > 0


def test_every_format_has_a_public_set() -> None:
    assert {f"lcot_{name}" for name in format_names()} == {data_set.formatting for data_set in ALL_SETS}


@pytest.mark.parametrize("roles", [("human", "gpt"), ("user", "assistant"), ("user", "model"), ("Human", "GPT")])
@pytest.mark.parametrize("keys", [("from", "value"), ("role", "content")])
@pytest.mark.parametrize("name", ["conversations", "messages"])
def test_turns_with_any_names(roles: tuple[str, str], keys: tuple[str, str], name: str) -> None:
    turns = [dict(zip(keys, turn, strict=True)) for turn in (("system", "Be brief."), (roles[0], "q"), (roles[1], "a"))]
    raw = read(name, {name: turns})
    assert raw.turns == [Turn("user", "q"), Turn("assistant", "a")]
    assert raw.system == "Be brief."


def test_a_prompt_ends_with_the_question_even_where_an_empty_response_follows() -> None:
    for response in ("", None):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": response}]
        assert read("messages", {"messages": turns, "answer": 0}) == RawRecord([Turn("user", "q")], gold=0)


def test_turns_as_datasets_makes_them_of_a_sequence_of_structs() -> None:
    raw = read("conversations", {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}})
    assert [turn.content for turn in raw.turns] == ["q", "a"]


def test_a_turns_own_reasoning_is_the_thought() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}]
    raw = read("messages", {"messages": turns})
    assert (raw.thought, raw.turns[-1].content) == ("2 + 2", "4")


@pytest.mark.parametrize(
    ("value", "images"),
    [
        (None, 0),
        ([], 0),
        ([None], 0),
        ("", 0),
        ({"bytes": None, "path": None}, 0),
        ("a.png", 1),
        (["a.png"], 1),
        ('["a.png", "b.png"]', 2),
        ("['a.png', 'b.png']", 2),
        (b"\x89PNG", 1),
        ({"bytes": b"\x89PNG", "path": None}, 1),
        ([{"bytes": None, "path": "a.png"}, "b.png"], 2),
        ({"url": "a.png"}, 1),
        (Image.new("L", (2, 2)), 1),
        ([[Image.new("L", (2, 2))], []], 1),
    ],
)
def test_images_of_a_column(value: Any, images: int) -> None:
    raw = read("problem", {"problem": "q", "answer": "1", "images": value})
    assert len(raw.images) == images


def test_the_first_column_with_images_counts() -> None:
    record = {"problem": "q", "answer": "1", "images": [], "image": None, "image_path": "a.png"}
    assert read("problem", record).images == ["a.png"]


def test_videos_keep_their_frames_together() -> None:
    assert read("problem", {"problem": "q", "answer": "1", "videos": ["a.mp4"]}).videos == ["a.mp4"]
    assert read("problem", {"problem": "q", "answer": "1", "videos": [["1.png", "2.png"]]}).videos == [
        ["1.png", "2.png"]
    ]


def parts(*kinds: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(kinds)}]}


IMAGE_PART = {"type": "image", "image": "own.png"}
BARE_PART = {"type": "image"}


def test_parts_take_their_images_from_themselves_or_the_column() -> None:
    assert read("messages", parts(IMAGE_PART, {"type": "text", "text": "q"})).images == ["own.png"]
    assert read("messages", {**parts(BARE_PART, "q"), "images": ["a.png"]}).images == ["a.png"]
    both = {**parts(BARE_PART, IMAGE_PART, BARE_PART), "images": ["a.png", "b.png"]}
    assert read("messages", both).images == ["a.png", "own.png", "b.png"]
    twice = {**parts(IMAGE_PART, "q"), "images": ["own.png"]}
    assert read("messages", twice).images == ["own.png"]
    raw = read("messages", parts({"type": "video", "video": ["1.png", "2.png"]}, IMAGE_PART, "q"))
    assert (raw.turns[0].content, raw.videos) == ("<video><image>q", [["1.png", "2.png"]])


def test_parts_and_column_that_contradict_each_other() -> None:
    assert "2 media, the conversation's parts 1" in fault("messages", {**parts(IMAGE_PART), "images": ["a", "b"]})
    assert "1 media for 2 parts" in fault("messages", {**parts(BARE_PART, BARE_PART, IMAGE_PART), "images": ["a"]})


def test_references_by_number_put_the_images_in_that_order() -> None:
    record = {"question": "Is <image 2> like <image2>?", "answer": "no", "images": ["1", "2", "3"]}
    raw = read("problem", record)
    assert raw.turns[0].content == "<image><image>Is <image> like (image 2)?"
    assert raw.images == ["1", "3", "2"]
    beyond = read("problem", {**record, "images": ["1"]})
    assert (beyond.turns[0].content, beyond.images) == (record["question"], ["1"])


@pytest.mark.parametrize("gold", [3, 0, 2.5, True, ["a", "b"], [1, 2, 3, 4], "x"])
def test_golds_stay_what_they_are(gold: Any) -> None:
    raw = read("problem", {"problem": "q", "answer": gold})
    assert raw.gold is gold
    assert raw.turns == [Turn("user", "q")]


def test_a_thinking_column_goes_before_the_answer_as_response() -> None:
    record = {"question": "q", "answer": "5", "qwen3vl_235b_thinking_response": "<think>t</think>5"}
    raw = read("solution", record)
    assert (raw.turns[-1].content, raw.gold) == ("<think>t</think>5", "5")


def test_solution_in_tags_with_and_without_a_thought() -> None:
    plain = read("tagged", {"problem": "q", "solution": "<answer> 145° </answer>"})
    assert (plain.gold, len(plain.turns)) == ("145°", 1)
    assert read("tagged", {"problem": "q", "solution": 7}).gold == 7
    worked = read("tagged", {"problem": "q", "solution": "<think>t</think>\n\n<answer>B</answer>"})
    assert (worked.gold, worked.turns[-1].role) == ("B", "assistant")


def test_options_in_every_form() -> None:
    forms: list[dict[str, Any]] = [
        {"choices": ["x", "y"]},
        {"options": "['x', 'y']"},
        {"options": {"A": "x", "B": "y", "C": None}},
        {"choices": {"label": ["A", "B"], "text": ["x", "y"]}},
        {"A": "x", "B": "y"},
        {"option_a": "x", "option_b": "y", "option_c": None},
        {"choice_A": "x", "choice_B": "y"},
    ]
    for form in forms:
        raw = read("choices", {"question": "q", "answer": 1, **form})
        assert (raw.options, raw.gold, raw.answer_type) == (["x", "y"], "B", "choice")
    in_full = read("choices", {"question": "q", "answer": "y", "choices": ["x", "y"]})
    assert (in_full.gold, in_full.answer_type) == ("y", "auto")
    assert "option 2, counted from 0; there are 2" in fault(
        "choices", {"question": "q", "answer": 2, "A": "x", "B": "y"}
    )


def test_instruction_with_input_and_history() -> None:
    record = {"instruction": "Add.", "input": "2, 2", "output": "4", "history": [["a", "b"]]}
    assert [turn.content for turn in read("instruction", record).turns] == ["a", "b", "Add.\n2, 2", "4"]
    assert "expected [question, answer]" in fault("instruction", {**record, "history": ["ab"]})


def test_trl_prompt_and_completion() -> None:
    prompt = [{"role": "user", "content": "q"}]
    answered = {"prompt": prompt, "completion": [{"role": "assistant", "content": "a"}], "answer": "1"}
    assert [turn.content for turn in read("verl", answered).turns] == ["q", "a"]
    assert read("verl", {"prompt": "q", "reward_model": {"ground_truth": "1"}}).gold == "1"


def test_vlm_r1_knows_boxes() -> None:
    def answer_type(answer: Any) -> str:
        turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]
        return read("vlm_r1", {"conversations": turns}).answer_type

    assert [answer_type(a) for a in ("[1, 2.5, 3, 4]", [1, 2, 3, 4], "[1, 2]", 3)] == ["boxes", "boxes", "auto", "auto"]
    assert "expected the answer as a last turn" in fault("vlm_r1", {"conversations": [{"from": "human", "value": "q"}]})


def test_chosen_columns_win() -> None:
    record = {"q": "q", "problem": "other", "worked": "long", "answer": "5", "pic": "a.png", "images": ["b.png"]}
    raw = read("problem", record, prompt="q", response="worked", images="pic")
    assert [turn.content for turn in raw.turns] == ["q", "long"]
    assert (raw.images, raw.gold) == (["a.png"], "5")


def test_a_column_chosen_for_one_role_is_no_other_roles_default() -> None:
    assert read("problem", {"problem": "q", "answer": "long"}, response="answer").gold is None
    raw = read("problem", {"problem": "q", "answer": "5"}, response="answer", gold="answer")
    assert (raw.gold, raw.turns[-1].content) == ("5", "5")


def test_a_role_given_as_null_is_not_read() -> None:
    raw = get_format("problem").read({"problem": "q", "answer": "5", "images": ["a"]}, {"images": None})
    assert raw.images == []


def test_columns_inside_a_struct() -> None:
    assert read("problem", {"problem": "q", "extra": {"answer": 5}}, gold="extra.answer").gold == 5
    assert read("problem", {"problem": "q", "extra": None}, gold="extra.answer").gold is None


def test_a_chosen_column_that_is_not_there() -> None:
    detail = fault("problem", {"problem": "q", "answer": "5"}, gold="anwser")
    assert "column 'anwser', which dataset_info.json names for 'gold'" in detail
    assert "the record has problem, answer" in detail


def test_a_role_that_the_format_does_not_read_is_no_records_fault() -> None:
    with pytest.raises(
        DataError, match="name golds, which lcot_problem does not read: it reads prompt, gold"
    ) as caught:
        read("problem", {"problem": "q", "answer": "5"}, golds="answer")
    assert not isinstance(caught.value, RecordError)


@pytest.mark.parametrize(
    ("name", "record", "said"),
    [
        (
            "problem",
            {"answer": "5"},
            "column 'problem or question or prompt or query or instruction' (prompt) is absent",
        ),
        ("problem", {"problem": {"a": 1}, "answer": "5"}, "column 'problem' has dict {'a': 1}; expected text"),
        ("problem", {**QUESTION_ONLY, "images": 5}, "column 'images' has int 5; expected a path, base64 text"),
        ("problem", {**QUESTION_ONLY, "images": ["a", {"b": 1}]}, "column 'images' has dict {'b': 1}"),
        ("solution", {**QUESTION_ONLY, "solution": {"a": 1}}, "column 'solution' has dict"),
        ("conversations", {}, "(messages) is absent or empty; the record has nothing"),
        ("conversations", {"conversations": 5}, "expected a list of turns"),
        ("conversations", {"conversations": "hello"}, "expected a list, or one written as JSON"),
        ("conversations", {"conversations": [{"from": "human"}]}, "expected role/content or from/value"),
        ("conversations", {"conversations": [{"from": "tool", "value": "x"}]}, "a turn of 'tool'; expected a user"),
        ("conversations", {"conversations": [{"from": "gpt", "value": "x"}]}, "assistant at place 0; expected user"),
        ("conversations", {"conversations": [{"from": "system", "value": "x"}]}, "no turn of a user"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "has the part dict"),
        ("finevision", {"texts": [{"user": "q"}]}, "expected {'user', 'assistant'}"),
        ("choices", {"question": "q", "answer": "A", "choices": 5}, "column 'choices' has int 5; expected a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_records_are_named(name: str, record: dict[str, Any], said: str) -> None:
    assert said in fault(name, record)


def test_two_turns_of_one_speaker() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "user", "content": "q2"}]
    assert "a turn of user at place 1; expected assistant" in fault("messages", {"messages": turns})
    late = [*turns[:1], {"role": "system", "content": "s"}]
    assert "a system turn at place 1" in fault("messages", {"messages": late})


def test_an_error_shows_little_of_a_large_value() -> None:
    assert len(fault("problem", {"problem": {"a": "x" * 100_000}})) < 300
    assert "9 bytes" in fault("problem", {"problem": b"123456789"})


@pytest.fixture
def own_format() -> Iterator[Format]:
    def build(fields: Fields) -> RawRecord:
        column, question = fields.need("prompt")
        assert column == "q"
        return RawRecord([Turn("user", question)], gold=fields.get("gold"))

    yield register_format(Format("own", "q and a", {"prompt": ("q",), "gold": ("a",)}, build))
    unregister_format("own")


def test_a_users_own_format(own_format: Format) -> None:
    assert get_format("lcot_own") is own_format is get_format("own")
    assert "own" in format_names()
    assert read("own", {"q": "x?", "a": 2}) == RawRecord([Turn("user", "x?")], gold=2)
    with pytest.raises(ArgumentError, match="'own' exists already"):
        register_format(own_format)


def test_auto_is_no_formats_name() -> None:
    with pytest.raises(ArgumentError, match="'auto' exists already"):
        register_format(Format("auto", "", {}, get_format("problem").build))


def test_unknown_format() -> None:
    with pytest.raises(DataError, match=r"no lcot_probelm: did you mean lcot_problem.*lcot_auto, lcot_problem"):
        get_format("lcot_probelm")


def test_records_are_not_changed(tmp_path: Path) -> None:
    for data_set in ALL_SETS:
        data_set.write(tmp_path / data_set.name)
        for record in data_set.read(tmp_path / data_set.name):
            before = repr(record)
            get_format(data_set.formatting).read(record, data_set.columns)
            assert repr(record) == before


def in_file(tmp_path: Path, body: str) -> str:
    """The spec of a function `cards` in a file of its own."""
    path = tmp_path / "cards.py"
    path.write_text(f"from lcot_plugin.types import RawRecord, Turn\n\n\ndef cards(fields):\n    {body}\n")
    return f"{path}:cards"


def test_a_format_in_a_file(tmp_path: Path) -> None:
    spec = in_file(tmp_path, "return RawRecord([Turn('user', fields.need('prompt')[1])], gold=fields.get('gold'))")
    with open(tmp_path / "cards.py", "a") as file:
        file.write('\n\ncards.roles = {"prompt": ("front",), "gold": ("back",)}\n')
    assert read(spec, {"front": "x?", "back": 2}) == RawRecord([Turn("user", "x?")], gold=2)
    assert read(spec, {"front": "x?", "b": 2}, gold="b").gold == 2
    assert "'front' (prompt) is absent or empty; the record has back" in fault(spec, {"back": 2})
    assert get_format(spec).formatting == spec
    assert get_format("problem").formatting == "lcot_problem"


def test_what_a_format_in_a_file_cannot_read_is_a_fault_of_the_record(tmp_path: Path) -> None:
    spec = in_file(tmp_path, "return RawRecord([Turn('user', fields.record['front'])])")
    assert fault(spec, {"back": 2}) == f"{spec} raised KeyError: 'front'"


def test_a_format_in_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"returned dict; return a lcot_plugin\.types\.RawRecord"):
        read(in_file(tmp_path, "return {}"), {"front": "x?"})
    with pytest.raises(DataError, match=r"format file .*absent\.py does not exist"):
        get_format("absent.py:cards")
    with pytest.raises(DataError, match="has no function 'card'; it defines cards"):
        get_format(f"{tmp_path / 'cards.py'}:card")
    with pytest.raises(DataError, match="does not read: it reads none"):
        read(in_file(tmp_path, "return {}"), {"front": "x?"}, gold="back")
