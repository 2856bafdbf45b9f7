from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lcot_plugin.data.targets import TARGETS, boxed, tagged
from lcot_plugin.data.traces import bare_answer, read_trace
from lcot_plugin.rewards.extraction import Place, extract_answer
from lcot_plugin.types import RecordFault, Trace

GEMMA = ("<|channel>thought\n", "<channel|>")


@pytest.mark.parametrize(
    ("conclusion", "as_boxed", "as_tagged"),
    [
        (r"The sum is \boxed{5}.", r"The sum is \boxed{5}.", "The sum is 5.\n\n<answer>5</answer>"),
        (r"\boxed{\text{B}}", r"\boxed{\text{B}}", "<answer>B</answer>"),
        (r"$\boxed{\frac{1}{2}}$", r"$\boxed{\frac{1}{2}}$", r"<answer>\frac{1}{2}</answer>"),
        ("<answer> 145° </answer>", r"\boxed{145°}", "<answer> 145° </answer>"),
        ("It is 5.\n<answer>5</answer>", "It is 5.\n\\boxed{5}", "It is 5.\n<answer>5</answer>"),
        (r"<answer>so \boxed{2}</answer>", r"so \boxed{2}", r"<answer>so \boxed{2}</answer>"),
        ("The answer is 5.", r"The answer is \boxed{5}.", "<answer>5</answer>"),
        ("### The final answer is: a", r"### The final answer is: \boxed{a}", "<answer>a</answer>"),
        ("**Answer:** $x^2$", r"**Answer:** $\boxed{x^2}$", "<answer>x^2</answer>"),
        ("#### 5", r"\boxed{5}", "<answer>5</answer>"),
        (
            "So 5 it is. The answer is 5.",
            r"So 5 it is. The answer is \boxed{5}.",
            "So 5 it is. The answer is 5.\n\n<answer>5</answer>",
        ),
        ("A cat.\nIt sleeps.", "A cat.\nIt sleeps.", "A cat.\nIt sleeps."),
    ],
)
def test_forms_of_a_conclusion(conclusion: str, as_boxed: str, as_tagged: str) -> None:
    trace = read_trace(f"<think>a</think>{conclusion}")
    assert TARGETS["think_boxed"].write(trace) == f"<think>\na\n</think>\n\n{as_boxed}"
    assert TARGETS["think_answer"].write(trace) == f"<think>\na\n</think>\n\n{as_tagged}"
    assert TARGETS["native"].write(trace, GEMMA) == f"<|channel>thought\na<channel|>{conclusion}"


@pytest.mark.parametrize("name", TARGETS)
def test_a_thought_that_never_closed_stays_open(name: str) -> None:
    trace = Trace("2 + 3", "", None, RecordFault.UNCLOSED_THOUGHT)
    written = TARGETS[name].write(trace)
    assert written == "<think>\n2 + 3"
    assert read_trace(written) == trace


@pytest.mark.parametrize("name", TARGETS)
def test_no_thought_is_written_without_one(name: str) -> None:
    trace = read_trace("The answer is 5.")
    assert "think" not in TARGETS[name].write(trace)
    assert read_trace(TARGETS[name].write(trace)).answer == "5"


def test_only_native_takes_other_words() -> None:
    trace = Trace("a", r"\boxed{5}", "5")
    assert TARGETS["think_boxed"].write(trace, GEMMA) == "<think>\na\n</think>\n\n\\boxed{5}"
    assert TARGETS["native"].write(trace, ("", "")) == "a\n\n\\boxed{5}"


@pytest.mark.parametrize(
    ("conclusion", "answer", "written"),
    [
        ("", "5", "5"),
        ("I cannot say\nwhat it is.", "5", "I cannot say\nwhat it is.\n\nThe answer is 5."),
        ("<answer>7", "5", "7\n\nThe answer is 5."),
        ("", "two\nlines", "\\boxed{two\nlines}"),
    ],
)
def test_native_states_an_answer_that_the_conclusion_lacks(conclusion: str, answer: str, written: str) -> None:
    assert TARGETS["native"].write(Trace(None, conclusion, answer)) == written


def test_system_prompts() -> None:
    shipped = r"Reason step by step between <think> and </think>, then give the final answer in \boxed{}."
    assert TARGETS["think_boxed"].system_prompt == shipped
    assert "<answer>" in TARGETS["think_answer"].system_prompt
    assert TARGETS["native"].system_prompt == ""


@pytest.mark.parametrize(
    "answer", ["5", "a } b", "a { b", "{1, 2}", "a\\", "C:\\dir {", "two\nlines", r"\{", "my answer is 5"]
)
def test_any_answer_survives_a_box_and_a_tag(answer: str) -> None:
    for text, place in ((boxed(answer), Place.BOXED), (tagged(answer), Place.TAG)):
        found = extract_answer(f"It is {text} indeed.\nBye")
        assert found is not None and found.place is place
        assert bare_answer(found.answer) == answer
    assert boxed("{1, 2}") == r"\boxed{{1, 2}}", "balanced braces need no dress"


thoughts = st.text(st.sampled_from("ab. \n{}\\$<>*5"), min_size=1, max_size=40).map(str.strip).filter(bool)
answers = st.text(st.sampled_from("aB5 .\n{}\\$*|()<>ü²°#/_"), min_size=1, max_size=12).map(bare_answer).filter(bool)
explanations = st.text(st.sampled_from("ab. \n{}$5"), max_size=20)


@given(
    thought=thoughts,
    answer=answers,
    before=explanations,
    after=st.sampled_from(["", ".", "\n", " is it."]),
    form=st.sampled_from([boxed, tagged, lambda answer: f"The answer is {answer}", str]),
    name=st.sampled_from(sorted(TARGETS)),
)
def test_what_is_written_is_read_again(thought, answer, before, after, form, name) -> None:
    trace = read_trace(f"<think>{thought}</think>{before}{form(answer)}{after}")
    assert trace.thought == thought
    if form in (boxed, tagged):
        assert trace.answer == answer
    assume(trace.answer is not None)
    written = TARGETS[name].write(trace)
    found = extract_answer(written)
    assert found is not None and bare_answer(found.answer) == trace.answer
    again = read_trace(written)
    assert (again.thought, again.answer, again.fault) == (trace.thought, trace.answer, trace.fault)
    assert TARGETS[name].write(again) == written


@given(thought=thoughts, conclusion=explanations, gold=answers, name=st.sampled_from(sorted(TARGETS)))
def test_an_appended_gold_answer_is_found(thought: str, conclusion: str, gold: str, name: str) -> None:
    written = TARGETS[name].write(Trace(thought, conclusion, gold))
    assert (read_trace(written).thought, read_trace(written).answer) == (thought, gold)


@pytest.mark.parametrize(
    "fragment", ["<answer>", "</answer>", "<answer>5</answer>", r"\boxed{", "The answer is 5. ", "5\n"]
)
@pytest.mark.parametrize("name", TARGETS)
def test_a_megabyte_of_anything_is_written(name: str, fragment: str) -> None:
    # Were a scan quadratic, this would take hours.
    written = TARGETS[name].write(Trace("a", fragment * (2**20 // len(fragment)), "7"))
    assert read_trace(written).answer == "7"
