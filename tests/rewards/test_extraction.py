# ruff: noqa: RUF001 (Chinese punctuation)
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.rewards.extraction import (
    MAX_ANSWER_CHARS,
    Found,
    Place,
    extract_answer,
    gold_answer,
    last_boxed,
    outside_thought,
)


@pytest.mark.parametrize(
    ("completion", "answer", "place"),
    [
        ("<answer>5</answer>", "5", Place.TAG),
        ("<answer>\n5\n</answer>", "5", Place.TAG),
        ("<answer>1</answer> <answer>2</answer>", "2", Place.TAG),
        (r"\boxed{1} <answer>so \boxed{2}</answer> \boxed{3}", "2", Place.TAG),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}", Place.BOXED),
        (r"\boxed{\text{B}\boxed{2}}", r"\text{B}\boxed{2}", Place.BOXED),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", Place.BOXED),
        ("The answer is 5. I hope this helps.", "5", Place.CUE),
        ("The answer is 3.14.", "3.14", Place.CUE),
        ("The answer is 1. No: the answer is 2", "2", Place.CUE),
        ("**Final answer:** 7\nBye", "7", Place.CUE),
        ("Answer:\n\n42", "42", Place.CUE),
        ("The answer is B. Paris", "B. Paris", Place.CUE),
        ("答案是5厘米。", "5厘米", Place.CUE),
        ("first\n7 cm\n\n", "7 cm", Place.LAST_LINE),
        (r"<think>\boxed{1}</think>2", "2", Place.LAST_LINE),
        (r"\boxed{1}, from a thought opened in the prompt</think>\boxed{2}", "2", Place.BOXED),
    ],
)
def test_places(completion: str, answer: str, place: Place) -> None:
    assert extract_answer(completion) == Found(answer, place)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " \n ",
        r"<think>the answer is \boxed{5}",
        r"<think>\boxed{5}</think>",
        r"<think>a</think><think>\boxed{5}",
        "<thinking>5",
        r"<|channel>thought\boxed{5}",
        "so <answer>12",
        r"\boxed{1}, then \boxed{\frac{1}{",
        r"<answer>so \boxed{5</answer>",
        "<|begin_of_box|>5",
        "<CONCLUSION>5",
        "[THINK]so 5",
        "<|channel|>analysis<|message|>it is 5",
        "1" * (MAX_ANSWER_CHARS + 1),
    ],
)
def test_no_answer(completion: str) -> None:
    assert extract_answer(completion) is None


@pytest.mark.parametrize(
    "completion",
    [
        r"<|channel>thought\boxed{1}<channel|>\boxed{2}",
        r"◁think▷\boxed{1}◁/think▷\boxed{2}",
        r"[THINK]\boxed{1}[/THINK]\boxed{2}",
        r"<seed:think>\boxed{1}</seed:think>\boxed{2}",
        r"<thought>\boxed{1}</thought>\boxed{2}",
        r"<reasoning>\boxed{1}</reasoning>\boxed{2}",
        r"<|begin_of_thought|>\boxed{1}<|end_of_thought|>\boxed{2}<|end_of_solution|>",
        r"<|channel|>analysis<|message|>\boxed{1}<|end|><|start|>assistant<|channel|>final<|message|>\boxed{2}<|return|>",
    ],
)
def test_thoughts_of_other_families(completion: str) -> None:
    assert extract_answer(completion) == Found("2", Place.BOXED)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{3} and \boxed{2}", "3, 2"),
        (r"\boxed{3}, \boxed{2}", "3, 2"),
        (r"The roots are $\boxed{3}$ and $\boxed{2}$.", "3, 2"),
        (r"$\boxed{3}\text{ and }\boxed{2}$", "3, 2"),
        (r"\boxed{5}, \boxed{6}, and \boxed{7}", "5, 6, 7"),
        (r"\boxed{3}和\boxed{2}", "3, 2"),
        (r"$x=\boxed{3}$, $y = \boxed{2}$", "x = 3, y = 2"),
        (r"\boxed{A}\boxed{C}", "A, C"),
        (r"\boxed{5} or \boxed{6}", "5 or 6"),
        (r"\boxed{5}, or maybe it is \boxed{6}", "5 or 6"),
        (r"\boxed{5}或\boxed{6}", "5 or 6"),
        ("<answer>5</answer> or <answer>6</answer>", "5 or 6"),
        # Each an answer of its own: the last counts.
        (r"\boxed{5}. Wait, \boxed{6}", "6"),
        ("\\boxed{5}\n\\boxed{6}", "6"),
        (r"\boxed{5} \boxed{5}", "5"),
        (r"\boxed{9} \boxed{9} \boxed{42}", "42"),
        (r"\boxed{0.5}, or equivalently, \boxed{\frac12}", r"\frac12"),
        (r"From \boxed{3} we get the area \boxed{9}", "9"),
    ],
)
def test_several_boxes(completion: str, answer: str) -> None:
    found = extract_answer(completion)
    assert found is not None
    assert found.answer == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\\boxed{\\frac{1}{2}}", r"\frac{1}{2}"),
        (r"x = 5 \\ \boxed{\begin{matrix}1\\2\end{matrix}}", r"\begin{matrix}1\\2\end{matrix}"),
        (r"so $\boxed 5$.", "5"),
        (r"\boxed5", "5"),
        (r"\fbox{5}", "5"),
        (r"$$\boxed{\,5\,}$$", "5"),
        ("so boxed{5}", "5"),
        ("<|begin_of_box|>5<|end_of_box|>", "5"),
        (r"<|begin_of_box|>1<|end_of_box|> then <|begin_of_box|>\boxed{5}<|end_of_box|>", "5"),
    ],
)
def test_dresses_of_a_box(completion: str, answer: str) -> None:
    assert extract_answer(completion) == Found(answer, Place.BOXED)


@pytest.mark.parametrize(
    "completion", [r"the area is \boxed 12", r"I \boxed the answer", r"\boxed 5.5", r"\boxed 5\pi"]
)
def test_a_box_without_braces_holds_one_sign(completion: str) -> None:
    # LaTeX would box the first sign only; what was meant is anyone's guess.
    found = extract_answer(completion)
    assert found is None or found.place is not Place.BOXED


@pytest.mark.parametrize(
    ("completion", "answer", "place"),
    [
        ("**Final Answer**\n\n5", "5", Place.HEADING),
        ("### Final Answer\n\\[\n5\n\\]", "5", Place.HEADING),
        ("The answer is unclear.\n**Answer**\nB", "B", Place.HEADING),
        ("2 + 3 = 5\n#### 5", "5", Place.HEADING),
        ("2 + 3 = 5\n### $5$", "$5$", Place.HEADING),
        ("Answer:\n$$\n5\n$$", "5", Place.CUE),
        ("```\nAnswer: 5\n```", "5", Place.CUE),
        ("Final answer: 5", "5", Place.CUE),
        ("The answer to this problem is 5.", "5", Place.CONCLUSION),
        ("The answer should be 5.", "5", Place.CONCLUSION),
        ("Ans: 5", "5", Place.CONCLUSION),
        ("The final result is 5.", "5", Place.CONCLUSION),
        ("Therefore, AB = 2 + 3 = 5.", "5", Place.CONCLUSION),
        ("Thus $x = 5$.", "x = 5", Place.CONCLUSION),
        ("So the area is $5$ cm.", "5 cm", Place.CONCLUSION),
        ("So x = 3 and y = 2.", "x = 3 and y = 2", Place.CONCLUSION),
        ("5 is the answer.", "5", Place.CONCLUSION),
        ("Answer $9$", "$9$", Place.CONCLUSION),
        ("1 + 9; final answer 10", "10", Place.CONCLUSION),
        ("After solving, we get $1/2$", "1/2", Place.CONCLUSION),
        ("Therefore $x \\geq 5$ is the solution.", "x \\geq 5", Place.CONCLUSION),
        ("The identity matrix is $ E $.", "E", Place.CONCLUSION),
        ("Either it is $5$", "Either it is $5$", Place.LAST_LINE),
        ("It is $5$ or $6$", "It is $5$ or $6$", Place.LAST_LINE),
        ("So it depends on whether $x$", "So it depends on whether $x$", Place.LAST_LINE),
        ("So, the pair $(x, y)$ that solves it is $(7, 6)$.", "(7, 6)", Place.CONCLUSION),
        ("####: 55", "55", Place.HEADING),
        ("答案等于40", "40", Place.CONCLUSION),
        ("答案40", "40", Place.CONCLUSION),
        ("정답은 D입니다", "D", Place.CONCLUSION),
        ("La réponse est 5.", "5", Place.CONCLUSION),
        ("So it is 5. <|im_start|>user\nAnd 6?", "5", Place.CONCLUSION),
        ("So 5 is the final answer.", "5", Place.CONCLUSION),
        ("答案：B", "B", Place.CUE),
        ("答案：是的。", "是的", Place.CUE),
        ("答案是：不是。", "不是", Place.CUE),
        ("因此，答案为B。", "B", Place.CUE),
        ("故选：B", "B", Place.CONCLUSION),
        ("故选B。", "B", Place.CONCLUSION),
        ("所以选择 B。", "B", Place.CONCLUSION),
        ("【答案】B", "B", Place.CONCLUSION),
        ("答案应为5", "5", Place.CONCLUSION),
        ("所以面积是5平方厘米。", "5平方厘米", Place.CONCLUSION),
        ("答：面积是5平方厘米。", "5平方厘米", Place.CONCLUSION),
        ("答：A", "A", Place.CONCLUSION),
        ("So it is not 5.", "So it is not 5.", Place.LAST_LINE),
        ("We choose a so that x = 5", "We choose a so that x = 5", Place.LAST_LINE),
        ("I don't think 5 is the answer.", "I don't think 5 is the answer.", Place.LAST_LINE),
        ("So is x = 5?", "So is x = 5?", Place.LAST_LINE),
        ("Hence a = 3, so b = 4, or not.", "Hence a = 3, so b = 4, or not.", Place.LAST_LINE),
        ("\\[\nx = 5\n\\]", "x = 5", Place.LAST_LINE),
        ("5\n\n---\n", "5", Place.LAST_LINE),
        ("5<|im_end|>\n", "5", Place.LAST_LINE),
        ('Here:\n```json\n{\n  "a": [1,\n  2]\n}\n```', '{\n  "a": [1,\n  2]\n}', Place.LAST_LINE),
        ('Answer:\n```json\n[\n {"a": 1}\n]\n```\nBye', '[\n {"a": 1}\n]', Place.CUE),
        ("正解は12ではない", "正解は12ではない", Place.LAST_LINE),
        ("So be it\n)", "So be it\n)", Place.LAST_LINE),
        ("### A heading", "### A heading", Place.LAST_LINE),
    ],
)
def test_cues_headings_and_conclusions(completion: str, answer: str, place: Place) -> None:
    assert extract_answer(completion) == Found(answer, place)


@pytest.mark.parametrize(
    "completion",
    [
        "I put it between <answer> and </answer>. <answer>5</answer>",
        "I will write <answer> </answer>. So <answer>5</answer>",
        "```\n<answer>5</answer>\n```",
        "<ANSWER>5</ANSWER>",
        "<reasoning>4</reasoning>\n<answer>\n5\n</answer>",
        "<answer>It is <|begin_of_box|>5<|end_of_box|></answer>",
        "<SUMMARY>a</SUMMARY><REASONING>4</REASONING><CONCLUSION>5</CONCLUSION>",
    ],
)
def test_tags(completion: str) -> None:
    assert extract_answer(completion) == Found("5", Place.TAG)


@pytest.mark.parametrize(
    ("completion", "answer", "place"),
    [
        (r"<think>\boxed{5}</think>", "5", Place.BOXED),
        (r"<think>so \boxed{5}", "5", Place.BOXED),
        ("<think>it is 5", "it is 5", Place.LAST_LINE),
        (r"<think>\boxed{5}</think>I am done.", "5", Place.BOXED),
        (r"<think>\boxed{5}</think>The answer is 6.", "6", Place.CUE),
        ("<think>it is 5</think>6", "6", Place.LAST_LINE),
        (r"<think>\boxed{5}</think>so \boxed{\frac{1}{", None, None),
    ],
)
def test_thoughts_that_are_searched(completion: str, answer: str | None, place: Place | None) -> None:
    expected = Found(answer, place) if answer is not None and place is not None else None
    assert extract_answer(completion, include_thought=True) == expected


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("<answer> 145° </answer>", "145°"),
        ("The answer is 7.", "7"),
        ("**Answer:** B", "B"),
        ("答案：6", "6"),
        ("6 * 7 = 42\n#### 42", "42"),
        (r"Therefore, the value is \(\boxed{3}\).", "3"),
        (r"<answer>\boxed{84}</answer>", "84"),
        (r"\boxed{3} and \boxed{4}", r"\boxed{3} and \boxed{4}"),
        ("whether the answer is 5", "whether the answer is 5"),
        ("Answer:", "Answer:"),
        ("<answer>a</answer> <answer>b</answer>", "<answer>a</answer> <answer>b</answer>"),
    ],
)
def test_gold_answers_in_the_words_of_a_completion(gold: str, answer: str) -> None:
    assert gold_answer(gold).strip() == answer


_PIECES = st.sampled_from(
    [
        "<answer>",
        "</answer>",
        r"\boxed{",
        "}",
        "{",
        "\\",
        "5",
        " or ",
        " and ",
        ", ",
        "\n",
        "the answer is ",
        "so ",
        "=",
        "<think>",
        "</think>",
        "####",
        "**Final Answer**",
        "答案：",
        "故选",
        " is ",
        "$",
        "<|begin_of_box|>",
        "B",
        ". ",
    ]
)


@given(st.lists(_PIECES, max_size=12).map("".join), st.booleans())
def test_any_text_states_an_answer_or_none(completion: str, include_thought: bool) -> None:
    found = extract_answer(completion, include_thought=include_thought)
    assert found is None or (found.answer == found.answer.strip() and found.answer)
    if not include_thought:
        assert found == extract_answer(outside_thought(completion))


@given(st.text(alphabet="ab{}\\$ ,1", max_size=30))
def test_the_last_box_is_read_whatever_stands_before_it(before: str) -> None:
    assert last_boxed(before + r" \boxed{\frac{1}{2}}") is not None


@pytest.mark.parametrize(
    "piece",
    [
        "<answer>",
        "<answer></answer>",
        r"\boxed{",
        r"\boxed{1}, ",
        r"\boxed ",
        "the answer is ",
        "<think>",
        "So ",
        "{",
        "# ",
        "=",
        "\n",
        " ",
        "答案是",
        "答：",
        "故选",
        "<|begin_of_box|>",
        "a is ",
        ". ",
    ],
)
def test_a_megabyte_is_read_in_linear_time(piece: str) -> None:
    # Anything quadratic would not come back.
    found = extract_answer(piece * (1_000_000 // len(piece)), include_thought=True)
    assert found is None or len(found.answer) <= MAX_ANSWER_CHARS


def test_boxes_in_boxes_are_read_in_linear_time() -> None:
    depth = 100_000
    nested = r"\boxed{" * depth + "5" + "}" * depth
    assert last_boxed(nested) == nested[7:-1]


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{5}\text{ m}", "5 m"),
        (r"$\boxed{5}$ cm.", "5 cm"),
        (r"\boxed{5}\,\mathrm{cm}^2", "5 cm^2"),
        (r"\boxed{30}^\circ", r"30^\circ"),
        (r"\boxed{50}\%", r"50\%"),
        (r"\boxed{3} 米。", "3 米"),
        (r"\boxed{5} in the end", "5"),
        (r"\boxed{5} m is what we walk", "5"),
        (r"\boxed{5}\text{ and so on}", "5"),
        (r"\boxed{5} apples.", "5"),
        (r"\boxed{B}\text{ m}", "B"),
        (r"\boxed{5\text{ cm}}\text{ m}", r"5\text{ cm}"),
        (r"\boxed{x=3} cm", "x=3"),
    ],
)
def test_only_a_known_unit_behind_a_boxed_number_belongs_to_it(completion: str, answer: str) -> None:
    assert extract_answer(completion) == Found(answer, Place.BOXED)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{255} Final Answer: The final answer is $10,455$. I hope it is correct.", "$10,455$"),
        ("\\boxed{4}\n**Final Answer:** $5$", "$5$"),
        (r"The final answer is $\boxed{5}$.", "5"),
        (r"\boxed{5}. The final answer is boxed above.", "5"),
        (r"\boxed{5}. The final answer is not 6.", "5"),
        (r"\boxed{5}. Checking: 2 + 4 = 6", "5"),
        (r"\boxed{9} \boxed{9} \boxed{42}", "42"),
    ],
)
def test_the_last_of_a_box_and_a_final_answer_counts(completion: str, answer: str) -> None:
    found = extract_answer(completion)
    assert found is not None
    assert found.answer == answer


@pytest.mark.parametrize(
    "completion",
    [
        "It is not true that the answer is 5",
        "It is not the case that the answer is 5.",
        "I don't think the answer is 5.",
        "I doubt the final answer is 5",
        "I wonder whether the answer is 5",
        "Suppose the answer is 5",
        "정답은 5가 아닙니다.",
        "Die Antwort ist nicht 5.",
    ],
)
def test_an_answer_that_is_denied_or_supposed_is_not_stated(completion: str) -> None:
    found = extract_answer(completion)
    assert found is not None
    assert not found.explicit


@pytest.mark.parametrize(
    "completion",
    [
        "It's not hard to see that the answer is 5",
        "I am not done yet. The answer is 5",
        "If x = 2, the answer is 5",
        "It is clear that the answer is 5",
    ],
)
def test_another_denial_in_the_text_leaves_the_answer_alone(completion: str) -> None:
    assert extract_answer(completion) == Found("5", Place.CUE)


@pytest.mark.parametrize(
    "completion",
    [
        "\\boxed{5}<|im_end|>\n<|im_start|>user\n\\boxed{6}",
        "\\boxed{5}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\\boxed{6}",
        "<start_of_turn>model\n\\boxed{5}<end_of_turn>\n<start_of_turn>user\n6",
        "\\boxed{5}<|endoftext|>Human: \\boxed{6}",
    ],
)
def test_a_completion_ends_with_its_turn(completion: str) -> None:
    assert extract_answer(completion) == Found("5", Place.BOXED)


@pytest.mark.parametrize(
    ("line", "answer", "place"),
    [
        ("Here is the result: $x^2+1$", "x^2+1", Place.CONCLUSION),
        ("Special matrix: $[1]$.", "[1]", Place.CONCLUSION),
        ("C です。水です。", "C", Place.CONCLUSION),
        ("185\\", "185", Place.LAST_LINE),
        ("Here is a common mistake: $x^2+1$", None, Place.LAST_LINE),
        ("Given: $x^2+1$", None, Place.LAST_LINE),
        ("Here are the options: $5$", None, Place.LAST_LINE),
        ("Here is $a$ and the result: $b$", None, Place.LAST_LINE),
        ("C ですか?", None, Place.LAST_LINE),
        ("C です。いや、Bです。", None, Place.LAST_LINE),
    ],
)
def test_last_lines_that_state_a_formula_or_a_letter(line: str, answer: str | None, place: Place) -> None:
    assert extract_answer(line) == Found(line if answer is None else answer, place)


@pytest.mark.parametrize(
    "completion",
    [
        "The answer is 5. Wait, it should be 6.",
        "The answer is 5. Let me check: no, it should be 6.",
        "**The answer is 5.** Hmm, that is wrong.",
        "The answer is 5.\nNo, it is 6.",
        "The answer is 5.\n\nThat cannot be right.",
        "Some claim the answer is 5.",
        "A careless student might say the answer is 5",
        "If x were 2, the answer is 5.",
        "Had it eaten grass, the answer is 5.",
        "If the tank were full, the answer is 5. But it is not, so 6.",
        "The answer is ~~5~~",
        "<answer>5</answer> so \\boxed{6}",
        "<answer>6</answer> so \\boxed{5}",
    ],
)
def test_an_answer_that_is_taken_back_or_another_s_is_not_stated(completion: str) -> None:
    found = extract_answer(completion)
    assert found is None or found.answer != "5"


@pytest.mark.parametrize(
    "completion",
    [
        "The answer is 5. No other value works.",
        "The answer is 5. This cannot be simplified.",
        "The answer is 5. It should be noted that 6 is too large.",
        "The answer is 5. Let me check: 2 + 3 is 5.",
        "The answer is 5.\nLet me know if it helps.",
        "The answer is 5. However you look at it, nothing changes.",
        "The answer is 6. Wait, it should be 5. The answer is 5.",
        "If you add them up, the answer is 5.",
        "We say the answer is 5.",
        "The answer is ~~6~~ 5",
        "The answer is 5, not 6.",
        "<answer>5</answer> so \\boxed{5}",
        "\\boxed{6} but <answer>5</answer>",
    ],
)
def test_an_answer_that_stands(completion: str) -> None:
    found = extract_answer(completion)
    assert found is not None
    assert found.answer == "5"
