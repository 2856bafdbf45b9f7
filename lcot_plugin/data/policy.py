"""A Sample and `malformed_trace_policy` in, the Sample to train on and what was found out; integration consumes both.

    fault              keep         repair                                              drop
    UNCLOSED_THOUGHT   as it is     closed where its answer begins, else gold appended  dropped
    NO_ANSWER          as it is     gold appended, else dropped                         dropped
    CONTRADICTS_GOLD   as it is     dropped                                             dropped
    NO_THOUGHT         as it is     as it is: a plain answer                            dropped

A thought that argues for another answer than the gold one cannot be mended by writing the gold answer beneath it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lcot_plugin.data.gold import option_letter
from lcot_plugin.data.traces import close_thought
from lcot_plugin.types import Finding, GoldAnswer, Handling, RecordFault, Sample, Trace

POLICIES = ("keep", "repair", "drop")
DETAIL_CHARS = 80

Agrees = Callable[[str, GoldAnswer], bool | None]
"""(answer, gold answer with how it is compared) -> whether they agree; None where that cannot be told."""


def settle(sample: Sample, policy: str, agrees: Agrees) -> tuple[Sample | None, list[Finding]]:
    """The sample with its trace kept or repaired, None where it is dropped; and one finding per fault.

    An answer to an open question, in prose, is no fault: NO_ANSWER is found where the response ends in its thought or
    is cut off, or where there is a gold answer and the conclusion states none.
    """
    assert policy in POLICIES, policy
    trace = sample.trace
    if trace is None:
        return sample, []
    findings: list[Finding] = []
    fault = trace.fault
    if fault is None and trace.answer is None and sample.gold is not None:
        fault = RecordFault.NO_ANSWER
    mended: Trace | None = trace
    if fault is not None and policy == "drop":
        return None, [Finding(fault, Handling.DROPPED, _tail(trace))]
    if fault is RecordFault.NO_THOUGHT or (fault is not None and policy == "keep"):
        findings.append(Finding(fault, Handling.KEPT, _tail(trace)))
    elif fault is not None:
        mended, how = _repair(trace, fault, sample.gold)
        handling = Handling.DROPPED if mended is None else Handling.REPAIRED
        findings.append(Finding(fault, handling, f"{how}; {_tail(trace)}"))
    if mended is None:
        return None, findings
    if contradiction := _contradiction(mended, sample, agrees):
        handling = Handling.KEPT if policy == "keep" else Handling.DROPPED
        findings.append(Finding(RecordFault.CONTRADICTS_GOLD, handling, contradiction))
        if handling is Handling.DROPPED:
            return None, findings
    return replace(sample, trace=mended), findings


def _repair(trace: Trace, fault: RecordFault, gold: str | None) -> tuple[Trace | None, str]:
    """The mended trace, None where it cannot be, and what was done."""
    thought = trace.thought or ""
    if fault is RecordFault.UNCLOSED_THOUGHT:
        closed = close_thought(thought)
        if closed is not None:
            return closed, f"closed before its answer {_shorten(closed.answer or '')!r}"
    if not thought.strip():
        return None, "there is no thought to keep"
    if gold is None:
        return None, "no gold answer to append"
    # Without the fault it is written as any other trace, the gold answer in the target's form.
    return Trace(thought, trace.conclusion, gold), f"gold answer {_shorten(gold)!r} appended"


def _contradiction(trace: Trace, sample: Sample, agrees: Agrees) -> str:
    """Both answers, where they differ; else nothing."""
    if trace.answer is None or sample.gold is None or trace.answer == sample.gold:
        return ""
    answer = trace.answer
    if sample.answer_type == "choice":
        answer = option_letter(answer, sample.options) or answer
    if agrees(answer, GoldAnswer(sample.gold, sample.answer_type, sample.match)) is not False:
        return ""
    return f"answer {_shorten(trace.answer)!r}, gold {_shorten(sample.gold)!r}"


def _tail(trace: Trace) -> str:
    """How the response ends, for the report."""
    end = " ".join((trace.conclusion or trace.thought or "").split())
    return f"ends with {end[-DETAIL_CHARS:]!r}"


def _shorten(text: str) -> str:
    return text if len(text) <= DETAIL_CHARS else text[: DETAIL_CHARS - 3] + "..."
