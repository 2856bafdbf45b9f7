from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.data.traces import (
    READERS,
    THOUGHT_WORDS,
    Split,
    bare_answer,
    close_thought,
    read_trace,
    register_reader,
    unregister_reader,
)
from lcot_plugin.types import RecordFault, Trace

STEPS = "Tom has 2 apples. He buys 3 more.\nSo he has 2 + 3 = 5."


@pytest.mark.parametrize(("opening", "closing"), THOUGHT_WORDS.values(), ids=THOUGHT_WORDS)
def test_each_pair_of_thought_words(opening: str, closing: str) -> None:
    read = Trace("2 + 3 = 5", r"The sum is \boxed{5}.", "5")
    assert read_trace(f"{opening}\n2 + 3 = 5\n{closing}\n\nThe sum is \\boxed{{5}}.") == read
    assert read_trace(f"2 + 3 = 5\n{closing}\nThe sum is \\boxed{{5}}.") == read, "the template opened it"
    assert read_trace(f"{opening}2 + 3") == Trace("2 + 3", "", None, RecordFault.UNCLOSED_THOUGHT)


@pytest.mark.parametrize(
    ("response", "trace"),
    [
        ("<THINK>a</Think>B", Trace("a", "B", "B")),
        ("<thinking>a</thinking><answer> 145° </answer>", Trace("a", "<answer> 145° </answer>", "145°")),
        (
            "<|begin_of_thought|>\na\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\\boxed{2}\n<|end_of_solution|>",
            Trace("a", r"\boxed{2}", "2"),
        ),
        ("Sure. <think>a</think> and <think>b</think>B", Trace("Sure.\n\na\n\nand\n\nb", "B", "B")),
        ("<think>they write <think> here</think>B", Trace("they write <think> here", "B", "B")),
        ("<think>a</think>b</think>B", Trace("a\n\nb", "B", "B")),
        (r"<think>a</think>\boxed{\text{\{1, 2\}}}", Trace("a", r"\boxed{\text{\{1, 2\}}}", "{1, 2}")),
        (r"<think>a</think>\boxed{\frac{1}{2}}", Trace("a", r"\boxed{\frac{1}{2}}", r"\frac{1}{2}")),
        ("<think>a</think>**Answer: 5**", Trace("a", "**Answer: 5**", "5")),
        ("<think>a</think>The sum follows.\n\n**7 cm**", Trace("a", "The sum follows.\n\n**7 cm**", "7 cm")),
        ("<think>a</think>A cat.\nIt sleeps.", Trace("a", "A cat.\nIt sleeps.", None)),
        ("<think>a</think>A cat lies there. It sleeps.", Trace("a", "A cat lies there. It sleeps.", None)),
        ("<think>a</think>A cat lies there.", Trace("a", "A cat lies there.", "A cat lies there")),
        ("<think>a</think>B. 3.5 cm", Trace("a", "B. 3.5 cm", "B. 3.5 cm")),
    ],
)
def test_delimited(response: str, trace: Trace) -> None:
    assert read_trace(response) == trace


@pytest.mark.parametrize(
    ("conclusion", "answer"),
    [
        ("The final answer is: B", "B"),
        ("### The final answer is: B", "B"),
        ("**Answer:** 5", "5"),
        ("#### 5", "5"),
        ("Answer: B", "B"),
        ("The answer is 5.", "5"),
        ("Therefore, the correct option is (C).", "(C)"),
        ("<answer>5</answer>", "5"),
        ("The area is $\\boxed{5}$.", "5"),
        ("\\[\n\\boxed{5}\n\\]", "5"),
        ("$$\nx = \\boxed{5}\n$$", "5"),
        ("\\begin{align}\nx &= 5 \\\\\n&= \\boxed{5}\n\\end{align}", "5"),
        ("**Final Answer**\n\n\\boxed{5}", "5"),
        ("答案是5。", "5"),
    ],
)
def test_a_worked_solution_is_a_thought_before_its_marked_answer(conclusion: str, answer: str) -> None:
    assert read_trace(f"{STEPS}\n\n{conclusion}") == Trace(STEPS, conclusion, answer)
    plain = read_trace(conclusion)
    assert (plain.thought, plain.answer, plain.fault) == (None, answer, RecordFault.NO_THOUGHT)


def test_the_conclusion_of_a_single_paragraph_is_its_last_sentence() -> None:
    trace = read_trace("Add 2 and 3. That is 2+3=5. The answer is 5.")
    assert trace == Trace("Add 2 and 3. That is 2+3=5.", "The answer is 5.", "5")


@pytest.mark.parametrize(
    "response", ["B", "145°", "The answer is 5.", "A red ball on a table.", "<think>\n\n</think>\n\nB"]
)
def test_a_bare_answer_has_no_thought(response: str) -> None:
    trace = read_trace(response)
    assert trace.thought is None and trace.fault is RecordFault.NO_THOUGHT and trace.answer is not None


def test_an_empty_thought_says_nothing() -> None:
    assert read_trace(f"<think>\n\n</think>\n\n{STEPS}\nThe answer is 5.") == read_trace(f"{STEPS}\nThe answer is 5.")


def test_prose_is_no_short_answer() -> None:
    prose = "A cat sleeps on a mat. The answer is not plain from this.\n" + "More is to be seen in it. " * 9
    assert read_trace(prose) == Trace(None, prose.strip(), None, RecordFault.NO_THOUGHT)


@pytest.mark.parametrize(
    "response", ["<think>a</think>", "<think>a</think> <answer>5", r"<think>a</think>so \boxed{\frac{1}{"]
)
def test_an_answer_that_is_missing_or_cut_off(response: str) -> None:
    trace = read_trace(response)
    assert (trace.thought, trace.answer, trace.fault) == ("a", None, RecordFault.NO_ANSWER)


def test_llava_cot() -> None:
    stages = "<SUMMARY> s </SUMMARY>\n\n<CAPTION> c </CAPTION>\n\n<REASONING> r </REASONING>\n\n"
    assert read_trace(stages + "<CONCLUSION> B </CONCLUSION>") == Trace("s\n\nc\n\nr", "B", "B")
    assert read_trace(stages) == Trace("s\n\nc\n\nr", "", None, RecordFault.NO_ANSWER)
    assert read_trace("<SUMMARY> s </SUMMARY><REASONING> r").fault is RecordFault.UNCLOSED_THOUGHT


def test_mulberry() -> None:
    steps = "### Image Description:\nA clock.\n\n### Let's think step by step.\n\n### Step 1: Look.\nIt shows 3."
    assert read_trace(f"{steps}\n\n### The final answer is: B") == Trace(steps, "### The final answer is: B", "B")
    assert read_trace(steps) == Trace(steps, "", None, RecordFault.NO_ANSWER)


@pytest.mark.parametrize(
    ("response", "thought", "trace"),
    [
        ("B", "It shows 3.", Trace("It shows 3.", "B", "B")),
        ("B", "  ", Trace(None, "B", "B", RecordFault.NO_THOUGHT)),
        ("B", "<think>It shows 3.</think>", Trace("It shows 3.", "B", "B")),
        ("B", "<think>It shows 3.", Trace("It shows 3.", "B", "B")),
        ("B", "<think>a</think>The answer is B.", Trace("a", "The answer is B.", "B")),
        ("B", "<think>a</think>The answer is C.", Trace("a\n\nThe answer is C.", "B", "B")),
        ("", "<think>a</think>B", Trace("a", "B", "B")),
        ("<think>a and b</think>B", "a and b", Trace("a and b", "B", "B")),
        ("<think>b</think>B", "a", Trace("a\n\nb", "B", "B")),
        ("", "a", Trace("a", "", None, RecordFault.NO_ANSWER)),
    ],
)
def test_a_thought_in_a_column_of_its_own(response: str, thought: str, trace: Trace) -> None:
    assert read_trace(response, thought) == trace


@pytest.mark.parametrize(
    ("thought", "closed"),
    [
        ("2 + 3 = 5\n<answer>5</answer>", Trace("2 + 3 = 5", "<answer>5</answer>", "5")),
        ("2 + 3 = 5 <answer>5</answer>", Trace("2 + 3 = 5", "<answer>5</answer>", "5")),
        (r"2 + 3 = 5. So it is \boxed{5}.", Trace("2 + 3 = 5.", r"So it is \boxed{5}.", "5")),
        (r"2 + 3 = \boxed{5}", Trace("2 + 3 =", r"\boxed{5}", "5")),
        ("2 + 3 = 5. The answer is 5.", Trace("2 + 3 = 5.", "The answer is 5.", "5")),
        ("a\n<|begin_of_solution|>\nx\n\\boxed{5}", Trace("a", "x\n\\boxed{5}", "5")),
        ("2 + 3 = 5. The answer is 5. Wait,", None),
        (r"2 + 3. It is \boxed{5}. No, 2 + 4 it was.", None),
        ("<answer>5</answer> but no", None),
        ("a <answer>5", None),
        ("and then", None),
        ("", None),
    ],
)
def test_closing_a_thought_where_its_answer_begins(thought: str, closed: Trace | None) -> None:
    assert close_thought(thought) == closed


@pytest.mark.parametrize(
    ("answer", "bare"),
    [
        (" **$\\text{B}$** ", "B"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"5\text{ cm}", r"5\text{ cm}"),
        (r"\text{a} + \text{b}", r"\text{a} + \text{b}"),
        (r"\text{a \} b\textbackslash{}}", "a } b\\"),
        ("$1$ and $2$", "$1$ and $2$"),
        ("5²", "5²"),
        ("Yes.", "Yes"),
        ("so...", "so..."),
        ("<answer>5</answer>", "5"),
        ("", ""),
    ],
)
def test_bare_answers(answer: str, bare: str) -> None:
    assert bare_answer(answer) == bare


FRAGMENTS = [word for words in THOUGHT_WORDS.values() for word in words] + [
    *("<answer>", "</answer>", r"\boxed{", "{", "}", "\\", "$", "**", "\n", "\n\n", ". ", "5", "word "),
    *("<CONCLUSION>", "<REASONING>", "### The final answer is", "The answer is ", "#### ", "<|begin_of_solution|>"),
]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join))
def test_any_text_is_read(text: str) -> None:
    trace = read_trace(text)
    if trace.fault is RecordFault.UNCLOSED_THOUGHT:
        assert trace.conclusion == "" and trace.answer is None
        close_thought(trace.thought or "")
    else:
        assert trace.answer is None or trace.conclusion
        assert (trace.thought is None) <= (trace.fault in (RecordFault.NO_THOUGHT, RecordFault.NO_ANSWER))
    if trace.answer is not None:
        assert bare_answer(trace.answer) == trace.answer


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_megabyte_of_anything_is_read(fragment: str) -> None:
    # Were a scan quadratic, this would take hours.
    text = fragment * (2**20 // len(fragment))
    assert read_trace(text).fault is not None
    close_thought(text)


def test_a_reader_of_ones_own() -> None:
    def read(text: str) -> Split | None:
        thought, arrow, conclusion = text.partition(" => ")
        return Split(thought, conclusion) if arrow else None

    register_reader("arrow", read)
    try:
        assert read_trace("2 + 3 => 5") == Trace("2 + 3", "5", "5")
        assert list(READERS)[-1] == "worked_solution"
        with pytest.raises(ValueError, match="'arrow' exists already"):
            register_reader("arrow", read)
    finally:
        unregister_reader("arrow")
    assert read_trace("2 + 3 => 5").thought is None
