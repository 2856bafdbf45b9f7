"""lcot_auto: every public set is taken for its format, ambiguous answers by what most records hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data.public_sets import PUBLIC_SETS, PublicSet

from lcot_plugin.data.formats import get_format, recognise
from lcot_plugin.data.formats.recognise import LONGEST_GOLD, is_worked
from lcot_plugin.errors import DataError

WORKED = "<think>\nOne and one.\n</think>\n\n\\boxed{2}"


def taken(*records: dict[str, Any], **columns: str) -> tuple[str, str]:
    recognition = recognise(records, columns)
    return recognition.format.name, recognition.reason


@pytest.mark.parametrize("data_set", PUBLIC_SETS.values(), ids=lambda data_set: data_set.name)
def test_public_set_is_recognised(data_set: PublicSet, tmp_path: Path) -> None:
    data_set.write(tmp_path)
    records = data_set.read(tmp_path)
    recognition = recognise(records)
    assert recognition.format is get_format(data_set.formatting)
    assert recognition.reason.startswith(f"lcot_auto: taken for `{recognition.format.name}` (")
    chosen = [get_format(data_set.formatting).read(record, data_set.columns) for record in records]
    assert [recognition.format.read(record) for record in records] == chosen
    assert recognise(records, data_set.columns).format is recognition.format


def test_the_reason_names_columns_and_what_decided() -> None:
    records = [{"problem": "q", "answer": WORKED, "images": ["a.png"]}, {"problem": "q", "answer": "2", "images": []}]
    name, reason = taken(records[0], records[0], records[1])
    assert name == "solution"
    assert reason == (
        "lcot_auto: taken for `solution` (columns problem, answer, images; answer is a worked response in 2 of 3 "
        "records)"
    )


def test_the_same_columns_are_decided_by_most_records() -> None:
    gold, worked = {"problem": "q", "answer": "2"}, {"problem": "q", "answer": WORKED}
    assert taken(gold, worked, gold)[0] == "problem"
    assert taken(worked, gold, worked)[0] == "solution"


@pytest.mark.parametrize(
    ("answer", "worked"),
    [
        ("5", False),
        (5, False),
        (None, False),
        (r"\frac{3}{4}", False),
        ("x" * LONGEST_GOLD, False),
        ("x" * (LONGEST_GOLD + 1), True),
        ("<think>a</think>b", True),
        ("<thinking>a</thinking>b", True),
        ("<SUMMARY> a </SUMMARY>", True),
        ("### Step 1:\nAdd.\n### The final answer is: 4", True),
        ("Two and two.\n\n**Answer:** 4", True),
        ("Two and two.\nStep 2: Add.", True),
        ("therefore", False),
    ],
)
def test_worked_responses_and_golds(answer: Any, worked: bool) -> None:
    assert is_worked(answer) is worked


def test_chosen_columns_settle_what_an_answer_is() -> None:
    short, long = {"problem": "q", "answer": "2"}, {"problem": "q", "answer": WORKED}
    assert taken(short)[0] == "problem"
    assert taken(short, response="answer")[0] == "solution"
    assert "dataset_info.json names answer as the response" in taken(short, response="answer")[1]
    assert taken(long)[0] == "solution"
    assert taken(long, gold="answer")[0] == "problem"
    assert "dataset_info.json names answer as the verifiable answer" in taken(long, gold="answer")[1]


def test_chosen_columns_with_names_of_no_known_set() -> None:
    record = {"q": "question", "worked": WORKED, "a": "2", "talk": [{"role": "user", "content": "q"}]}
    assert taken(record, prompt="q", response="worked", gold="a")[0] == "solution"
    assert taken(record, prompt="q", gold="a")[0] == "problem"
    assert taken(record, messages="talk", gold="a")[0] == "messages"
    assert taken(record, prompt="q", thought="worked", gold="a")[0] == "thought"


def test_a_last_turn_is_a_gold_only_where_it_is_nothing_else() -> None:
    def record(answer: Any, **more: Any) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}], **more}

    assert taken(record("[1, 2, 3, 4]"), record("[4, 5, 6, 7]"))[0] == "vlm_r1"
    assert taken(record(4), record("B"))[0] == "vlm_r1"
    assert taken(record(4), record("A red cube."))[0] == "conversations"
    assert taken(record(4, solution="4"))[0] == "conversations"
    assert taken(record("A red cube.", accu_reward_method="llm"))[0] == "vlm_r1"
    assert taken(record(WORKED))[0] == "conversations"


def test_options_count_where_the_answer_names_one_of_them() -> None:
    named = {"question": "q", "choices": ["x", "y"], "answer": "B"}
    in_full = {"question": "q", "choices": ["x", "y"], "answer": "y"}
    assert taken(named)[0] == "choices"
    name, reason = taken(in_full)
    assert name == "problem"
    assert "choices is left out, lcot_choices would show it" in reason
    assert taken(in_full, options="choices")[0] == "choices"


def test_one_odd_record_does_not_decide() -> None:
    good = {"messages": [{"role": "user", "content": "q"}], "solution": "2"}
    assert taken({"messages": None, "solution": "2"}, good, good)[0] == "messages"


def test_a_short_response_stays_a_response() -> None:
    assert taken({"question": "q", "response": "a cat"})[0] == "solution"


def test_what_fits_no_format() -> None:
    with pytest.raises(DataError) as caught:
        recognise([{"foo": 1}, {"bar": 2}])
    assert "no format with the columns foo, bar" in str(caught.value)
    assert "lcot_vlm_r1: conversations whose last turn" in str(caught.value)
    with pytest.raises(DataError, match="no format with the columns problem, images"):
        recognise([{"problem": "no answer", "images": []}])


def test_a_set_whose_records_cannot_be_read() -> None:
    with pytest.raises(
        DataError, match=r"took the data set for lcot_problem.*column 'problem' has dict.*another format, name it"
    ):
        recognise([{"problem": {"de": "Frage"}, "answer": "2"}])


def test_no_records() -> None:
    with pytest.raises(DataError, match="at least one record"):
        recognise([])


@pytest.mark.parametrize(
    ("answer", "worked"),
    [
        (r"First I see two numbers, which I must add. First 4, then 3. So \boxed{7} and that is all.", True),
        (r"The answer is \boxed{5}.", False),
        (r"\boxed{\text{the red ball on the left of the large green cube}}", False),
        (r"$\frac{1}{2}$", False),
    ],
)
def test_sentences_around_a_box_are_a_worked_response(answer: str, worked: bool) -> None:
    assert is_worked(answer) is worked
