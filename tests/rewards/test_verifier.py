from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcot_plugin.errors import ArgumentError, DataError, RewardError
from lcot_plugin.rewards import Verifier, gold_is_usable, verify
from lcot_plugin.types import Outcome, ScoringRequest

HANGING = [r"9^{9^{9^9}}", "(10^8)!"]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(deadline_seconds=2.0, num_workers=1) as verifier:
        yield verifier


def test_a_hang_is_killed_and_the_next_item_verified_in_order(verifier: Verifier) -> None:
    requests = [
        ScoringRequest(rf"\boxed{{{HANGING[0]}}}", r"\sqrt{2}"),
        ScoringRequest(r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
        ScoringRequest("7", "7"),
        ScoringRequest(rf"\boxed{{{HANGING[1]}}}", "1024"),
        ScoringRequest(r"\boxed{\sqrt{9}}", r"2\sqrt{2}"),
        ScoringRequest("", "7"),
    ]
    verdicts = verifier.verify_batch(requests)
    assert [verdict.outcome for verdict in verdicts] == [
        Outcome.TIMED_OUT,
        Outcome.MATCHED,
        Outcome.MATCHED,
        Outcome.TIMED_OUT,
        Outcome.MISMATCHED,
        Outcome.UNPARSABLE,
    ]
    assert [verdict.gold for verdict in verdicts] == [request.gold for request in requests]
    assert [verdict.answer_type for verdict in verdicts[:3]] == ["expression", "expression", "number"]


def test_a_killed_worker_is_reaped(verifier: Verifier) -> None:
    assert verifier.verify(r"\sqrt{8}", r"2\sqrt{2}").matched
    (before,) = verifier._workers
    assert verifier.verify(HANGING[0], r"\sqrt{2}").outcome is Outcome.TIMED_OUT
    assert not before.alive
    assert before not in verifier._workers
    with pytest.raises(ProcessLookupError):
        os.kill(before._process.pid, 0)


def test_a_worker_killed_from_outside_is_replaced(verifier: Verifier) -> None:
    assert verifier.verify(r"\sqrt{8}", r"2\sqrt{2}").matched
    (worker,) = verifier._workers
    worker._process.kill()
    worker._process.wait()
    assert verifier.verify(r"\sqrt{8}", r"2\sqrt{2}").matched


def test_threads_share_a_verifier(verifier: Verifier) -> None:
    results: dict[int, list[bool]] = {}

    def work(number: int) -> None:
        requests = [ScoringRequest(rf"\boxed{{\sqrt{{{4 * n}}}}}", rf"{number}\sqrt{{{n}}}") for n in (2, 3)]
        results[number] = [verdict.matched for verdict in verifier.verify_batch(requests)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [number == 2] * 2 for number in range(4)}


def test_several_workers_keep_the_order() -> None:
    requests = [ScoringRequest(rf"\sqrt{{{n}}}", r"\sqrt{3}") for n in range(2, 12)]
    with Verifier(num_workers=2) as verifier:
        matched = [verdict.matched for verdict in verifier.verify_batch(requests)]
    assert matched == [n == 3 for n in range(2, 12)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_worker(verifier: Verifier) -> None:
    assert verifier.verify(r"\sqrt{8}", r"2\sqrt{2}").matched
    code = """
import os
from lcot_plugin.rewards import Verifier
verifier = Verifier(num_workers=1)
assert verifier.verify(r"\\sqrt{8}", r"2\\sqrt{2}").matched
child = os.fork()
if child == 0:
    right = verifier.verify(r"\\sqrt{12}", r"2\\sqrt{3}").matched
    verifier.close()
    os._exit(0 if right else 1)
assert os.waitpid(child, 0)[1] == 0
assert verifier.verify(r"\\sqrt{27}", r"3\\sqrt{3}").matched
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_workers_end_with_a_parent_that_is_killed() -> None:
    code = """
import os, signal
from lcot_plugin.rewards import Verifier
verifier = Verifier(num_workers=1)
verifier.verify(r"\\sqrt{8}", r"2\\sqrt{2}")
(worker,) = verifier._workers
print(worker._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # The worker holds a copy of no pipe but its own two, so that this read ends only when it is not left behind
    # with our standard output, which it inherits nothing of.
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    worker = int(parent.stdout)
    ended = threading.Event()
    for _ in range(400):
        if not _runs(worker):
            break
        ended.wait(0.05)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_easy_answers_import_no_algebra_and_start_no_worker() -> None:
    code = """
import sys
from lcot_plugin.rewards import Scorer, verify
from lcot_plugin.rewards import verifier
assert verify(r"\\boxed{5 cm}", "5").matched
assert verify("(B)", "B").matched
assert not verify("no", "yes").matched
assert not verifier.shared_verifier()._workers
heavy = {"torch", "sympy", "math_verify", "latex2sympy2_extended", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_gold_answers_that_cannot_be_read() -> None:
    assert verify("3", r"\frac{1}{2} + \sqrt{").outcome is not Outcome.MATCHED
    assert verify("3", r"\frac{1}{}+x").outcome is Outcome.GOLD_UNPARSABLE
    assert verify("3", "three", answer_type="number").outcome is Outcome.GOLD_UNPARSABLE
    assert verify("B", "Paris", answer_type="choice").outcome is Outcome.GOLD_UNPARSABLE
    assert verify("", "").outcome is Outcome.GOLD_UNPARSABLE


def test_a_gold_answer_that_hangs_is_its_own_fault(verifier: Verifier) -> None:
    assert verifier.verify(r"\boxed{3}", "(10^8)!+x").outcome in (Outcome.TIMED_OUT, Outcome.GOLD_UNPARSABLE)


def test_usable_gold_answers() -> None:
    for gold in ("5", "B", "yes", r"2\sqrt{3}", "(2,3)", "5 cm"):
        assert gold_is_usable(gold)
    assert not gold_is_usable(r"\frac{1}{}+x")
    assert not gold_is_usable("many", "number")
    for empty in (None, "", "  "):
        with pytest.raises(DataError, match="gold answer is empty"):
            gold_is_usable(empty)


def test_explicit_answer_types() -> None:
    assert verify("the 12:30", "12:30", answer_type="text").matched
    assert verify("E", "E", answer_type="choice").answer_type == "choice"
    assert verify("50%", "50", answer_type="number").matched
    assert verify("1+x", "x+1", answer_type="expression").matched
    with pytest.raises(RewardError, match="'maths' is unknown; write one of auto, number"):
        verify("5", "5", answer_type="maths")


def test_bad_settings() -> None:
    with pytest.raises(ArgumentError, match="deadline_seconds"):
        Verifier(deadline_seconds=0)
    with pytest.raises(ArgumentError, match="num_workers"):
        Verifier(num_workers=0)


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('no math_verify here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with Verifier() as verifier, pytest.raises(RewardError, match="no math_verify here"):
        verifier.verify(r"\sqrt{8}", r"2\sqrt{2}")


def test_a_model_cannot_run_code(verifier: Verifier, tmp_path) -> None:
    target = tmp_path / "written"
    verdict = verifier.verify(rf"\boxed{{__import__('pathlib').Path('{target}').touch()}}", r"2\sqrt{3}")
    assert not verdict.matched
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    [
        "<answer>",
        r"\boxed{",
        "<think>",
        "answer is ",
        "1,",
        "(B ",
        "1 000",
        "{",
        "*",
        "\n",
        "a . ",
        "(" * 30 + "1,",
        "√",
    ],
)
def test_a_megabyte_of_anything_is_no_answer(verifier: Verifier, text: str) -> None:
    for gold in ("5", "B", "yes", "(2,3)", "5 cm"):
        assert not verifier.verify(text * (1_000_000 // len(text)), gold).matched


DRESS = st.sampled_from(
    [r"\boxed{%s}", "<answer>%s</answer>", "The answer is %s.", "%s", r"$\boxed{\text{%s}}$", "**%s**"]
)
FRAGMENTS = st.lists(
    st.sampled_from(
        [r"\boxed{", "}", "<think>", "</think>", "<answer>", "</answer>", "(", ")", ",", "5", "B", " ", "%"]
    )
    | st.sampled_from(
        [r"\frac", r"\text{", "^", "°", "/", "cm", "=", "is ", "answer: ", "1e9", "²", "½", "和", "-", "."]
    )
    | st.text(max_size=5),
    max_size=20,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(FRAGMENTS, st.sampled_from(["5", "B", "yes", "12:30", "50%", "5 cm", "(2, 3)", "145°"]))
def test_no_text_makes_it_raise(fuzz_verifier: Verifier, text: str, gold: str) -> None:
    assert isinstance(fuzz_verifier.verify(text, gold).outcome, Outcome)


@settings(deadline=None, max_examples=100)
@given(FRAGMENTS, FRAGMENTS)
def test_no_gold_makes_it_raise(fuzz_verifier: Verifier, text: str, gold: str) -> None:
    assert isinstance(fuzz_verifier.verify(text, gold).outcome, Outcome)


@pytest.fixture(scope="session")
def fuzz_verifier() -> Iterator[Verifier]:
    with Verifier(deadline_seconds=1.0) as verifier:
        yield verifier


NUMBERS = st.integers(-(10**12), 10**12).map(str) | st.decimals(-(10**6), 10**6, places=3).map(str)
WORDS = st.text("bcdfgmnprst", min_size=3, max_size=9) | st.sampled_from(["yes", "no", "red", "left"])


@settings(deadline=None, max_examples=200)
@given(NUMBERS | st.sampled_from("ABCDEFGHIJ") | WORDS, DRESS)
def test_a_gold_answer_matches_itself_in_any_dress(gold: str, dress: str) -> None:
    assert verify(dress % gold, gold).matched


@settings(deadline=None, max_examples=200)
@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), DRESS)
def test_other_numbers_never_match(gold: int, other: int, dress: str) -> None:
    assert verify(dress % other, str(gold)).matched == (gold == other)


@settings(deadline=None, max_examples=100)
@given(st.integers(-999, 999), st.integers(1, 999), st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_compared_exactly_and_symmetrically(top: int, bottom: int, top2: int, bottom2: int) -> None:
    equal = top * bottom2 == top2 * bottom
    first, second = rf"\frac{{{top}}}{{{bottom}}}", f"{top2}/{bottom2}"
    assert verify(first, second).matched == verify(second, first).matched == equal
