from __future__ import annotations

from dataclasses import replace

import pytest

from lcot_plugin.data.policy import settle
from lcot_plugin.data.targets import TARGETS, boxed
from lcot_plugin.data.traces import read_trace
from lcot_plugin.rewards import verify
from lcot_plugin.types import Finding, GoldAnswer, Handling, Outcome, RecordFault, Sample


def sample_of(
    response: str, gold: str | None = None, answer_type: str = "auto", options: tuple[str, ...] = ()
) -> Sample:
    return Sample(
        question="2 + 3?",
        images=[],
        videos=[],
        trace=read_trace(response),
        gold=gold,
        answer_type=answer_type,
        options=list(options),
        history=[],
        system=None,
        subset="",
    )


def agrees(answer: str, gold: GoldAnswer) -> bool | None:
    verdict = verify(boxed(answer), gold.text, answer_type=gold.answer_type)
    return {Outcome.MATCHED: True, Outcome.MISMATCHED: False}.get(verdict.outcome)


UNCLOSED = "<think>2 + 3 = 5, and then"
UNCLOSED_WITH_ANSWER = "<think>2 + 3 = 5. So it is \\boxed{5}."
NO_ANSWER = "<think>2 + 3 = 5</think>"
CONTRADICTION = "<think>2 + 3 = 6</think>\\boxed{6}"
BARE = "The answer is 5."


@pytest.mark.parametrize(
    ("response", "gold", "fault", "handlings", "repaired"),
    [
        (
            UNCLOSED,
            "5",
            "UNCLOSED_THOUGHT",
            "kept repaired dropped",
            "<think>\n2 + 3 = 5, and then\n</think>\n\n\\boxed{5}",
        ),
        (UNCLOSED, None, "UNCLOSED_THOUGHT", "kept dropped dropped", None),
        (
            UNCLOSED_WITH_ANSWER,
            None,
            "UNCLOSED_THOUGHT",
            "kept repaired dropped",
            "<think>\n2 + 3 = 5.\n</think>\n\nSo it is \\boxed{5}.",
        ),
        ("<think>", "5", "UNCLOSED_THOUGHT", "kept dropped dropped", None),
        (NO_ANSWER, "5", "NO_ANSWER", "kept repaired dropped", "<think>\n2 + 3 = 5\n</think>\n\n\\boxed{5}"),
        (NO_ANSWER, None, "NO_ANSWER", "kept dropped dropped", None),
        ("", "5", "NO_ANSWER", "kept dropped dropped", None),
        (CONTRADICTION, "5", "CONTRADICTS_GOLD", "kept dropped dropped", None),
        (BARE, "5", "NO_THOUGHT", "kept kept dropped", "The answer is \\boxed{5}."),
        (BARE, None, "NO_THOUGHT", "kept kept dropped", "The answer is \\boxed{5}."),
    ],
)
def test_the_table(response: str, gold: str | None, fault: str, handlings: str, repaired: str | None) -> None:
    sample = sample_of(response, gold)
    for policy, handling in zip(("keep", "repair", "drop"), handlings.split(), strict=True):
        settled, findings = settle(sample, policy, agrees)
        assert [(finding.fault, finding.handling) for finding in findings] == [(RecordFault[fault], Handling(handling))]
        assert (settled is None) == (handling == "dropped")
        if handling == "kept":
            assert settled == sample
        if policy == "repair" and settled is not None:
            assert settled.trace is not None
            assert TARGETS["think_boxed"].write(settled.trace) == repaired


@pytest.mark.parametrize("policy", ["keep", "repair", "drop"])
@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("<think>2 + 3</think>\\boxed{5}", "5"),
        ("<think>2 + 3</think>\\boxed{5.0}", "5"),
        ("<think>2 + 3</think>\\boxed{6}", None),
        ("<think>It is seen.</think>A cat lies there.\nIt sleeps.", None),
    ],
)
def test_nothing_to_find(policy: str, response: str, gold: str | None) -> None:
    sample = sample_of(response, gold)
    assert settle(sample, policy, agrees) == (sample, [])
    unanswered = replace(sample, trace=None)
    assert settle(unanswered, policy, agrees) == (unanswered, [])


def test_prose_with_a_gold_answer_lacks_an_answer() -> None:
    sample = sample_of("<think>It is seen.</think>A cat lies there.\nIt sleeps.", "cat")
    settled, findings = settle(sample, "repair", agrees)
    assert settled is not None and settled.trace is not None
    written = TARGETS["think_boxed"].write(settled.trace)
    assert written == "<think>\nIt is seen.\n</think>\n\nA cat lies there.\nIt sleeps.\n\n\\boxed{cat}"
    assert [finding.fault for finding in findings] == [RecordFault.NO_ANSWER]


def test_a_closed_thought_can_still_contradict() -> None:
    settled, findings = settle(sample_of(UNCLOSED_WITH_ANSWER, "6"), "repair", agrees)
    assert settled is None
    assert [finding.fault for finding in findings] == [RecordFault.UNCLOSED_THOUGHT, RecordFault.CONTRADICTS_GOLD]


def test_no_contradiction_is_found_where_it_cannot_be_told() -> None:
    sample = sample_of(CONTRADICTION, "5")
    assert settle(sample, "repair", lambda answer, gold: None) == (sample, [])


def test_the_text_of_an_option_is_its_letter() -> None:
    sample = sample_of("<think>2 + 3</think>\\boxed{5 cm}", "B", "choice", ("4 cm", "5 cm"))
    assert settle(sample, "repair", agrees) == (sample, [])
    assert settle(replace(sample, gold="A"), "repair", agrees)[0] is None


def test_boxes_are_compared_as_boxes() -> None:
    seen = []

    def record(answer: str, gold: GoldAnswer) -> bool:
        seen.append(gold.answer_type)
        return True

    settle(sample_of("<think>a</think>[1, 2, 3, 4]", "[1, 2, 3, 5]", "boxes"), "repair", record)
    assert seen == ["boxes"]


def test_details_say_what_was_found() -> None:
    findings = settle(sample_of(CONTRADICTION, "5"), "repair", agrees)[1]
    assert findings == [Finding(RecordFault.CONTRADICTS_GOLD, Handling.DROPPED, "answer '6', gold '5'")]
    (finding,) = settle(sample_of("<think>" + "x" * 500 + " and then", "5"), "repair", agrees)[1]
    assert finding.detail.startswith("gold answer '5' appended; ends with 'xxx")
    assert finding.detail.endswith("and then'") and len(finding.detail) < 200
