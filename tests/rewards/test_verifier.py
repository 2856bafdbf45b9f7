from __future__ import annotations

import math
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
from lcot_plugin.rewards.extraction import Found, Place
from lcot_plugin.rewards.kinds.base import Gold
from lcot_plugin.rewards.pool import Comparison
from lcot_plugin.types import MatchSettings, Outcome, ScoringRequest

HANGING = [r"9^{9^{9^9}}", "(10^8)!"]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(deadline_seconds=2.0, num_workers=1) as verifier:
        yield verifier


def test_giants_are_never_right_and_lose_nothing(verifier: Verifier) -> None:
    requests = [
        ScoringRequest(rf"\boxed{{{HANGING[0]}}}", r"\sqrt{2}"),
        ScoringRequest(r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
        ScoringRequest("7", "7"),
        ScoringRequest(rf"\boxed{{{HANGING[1]}}}", "1024"),
        ScoringRequest(r"\boxed{\sqrt{9}}", r"2\sqrt{2}"),
        ScoringRequest("", "7"),
    ]
    verdicts = verifier.verify_batch(requests)
    giants = [verdicts.pop(0).outcome, verdicts.pop(2).outcome]
    assert set(giants) <= {Outcome.TIMED_OUT, Outcome.MISMATCHED, Outcome.UNPARSABLE}
    matched = Outcome.MATCHED
    assert [verdict.outcome for verdict in verdicts] == [matched, matched, Outcome.MISMATCHED, Outcome.UNPARSABLE]
    assert [verdict.gold for verdict in verdicts] == [r"2\sqrt{2}", "7", r"2\sqrt{2}", "7"]
    assert [verdict.answer_type for verdict in verdicts[:2]] == ["expression", "number"]


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
def test_a_forked_child_starts_its_own_worker() -> None:
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


def test_easy_answers_import_no_algebra_and_start_no_worker() -> None:
    code = """
import sys
from lcot_plugin.rewards import Scorer, verify
from lcot_plugin.rewards import verifier
assert verify(r"\\boxed{5 cm}", "5").matched
assert verify("(B)", "B").matched
assert not verify("no", "yes").matched
assert verifier.shared_verifier()._pool._zygote is None
heavy = {"torch", "sympy", "math_verify", "latex2sympy2_extended", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_gold_answers_that_cannot_be_read() -> None:
    assert verify("3", r"\frac{1}{2} + \sqrt{").outcome is not Outcome.MATCHED
    assert verify("3", r"\frac{1}{}+x").outcome is Outcome.GOLD_UNPARSABLE
    assert verify("3", "many", answer_type="number").outcome is Outcome.GOLD_UNPARSABLE
    assert verify("B", "Paris", answer_type="choice").outcome is Outcome.GOLD_UNPARSABLE
    assert verify("", "").outcome is Outcome.GOLD_UNPARSABLE


def test_a_giant_gold_answer_is_never_matched_by_another(verifier: Verifier) -> None:
    assert not verifier.verify(r"\boxed{3}", "(10^8)!+x").matched


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
    for seconds in (0, -1, math.nan, math.inf, "5", True):
        with pytest.raises(ArgumentError, match="deadline_seconds"):
            Verifier(deadline_seconds=seconds)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="deadline_seconds"):
            verify("5", "5", deadline_seconds=seconds)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="num_workers"):
        Verifier(num_workers=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("options", "5 cm"),
        ("aliases", "five"),
        ("relative_tolerance", -0.1),
        ("absolute_tolerance", math.nan),
        ("min_anls", 0),
        ("min_iou", 50),
        ("image_size", (640, 0)),
        ("include_thought", "no"),
    ],
)
def test_settings_that_cannot_work(name: str, value: object) -> None:
    with pytest.raises(RewardError, match=f"^{name} is .*write"):
        verify("5", "5", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(RewardError, match=f"^{name} is .*write"):
        Verifier().verify_batch([ScoringRequest("5", "5", settings=MatchSettings(**{name: value}))])  # type: ignore[arg-type]


def test_a_setting_that_there_is_not() -> None:
    with pytest.raises(RewardError, match="called tolerance; there are options, aliases, relative_tolerance"):
        Verifier().verify("5", "5", tolerance=0.1)


def test_settings_reach_the_comparison_in_the_worker(verifier: Verifier) -> None:
    settings = MatchSettings(options=("a", "\ud800"), image_size=(3, 4), relative_tolerance=0.1)
    comparison = Comparison(Found(r"\sqrt{8}", Place.BOXED), r"2\sqrt{2}", "expression", settings)
    assert verifier._pool.judge(comparison, 60.0).outcome is Outcome.MATCHED


def test_settings_reach_the_comparison_here(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def judged(gold: Gold, found: Found | None, settings: MatchSettings) -> Outcome:
        seen.append(settings)
        return Outcome.MISMATCHED

    monkeypatch.setattr("lcot_plugin.rewards.verifier.judge", judged)
    listed = MatchSettings(options=["2", "7"], aliases=["4"])  # type: ignore[arg-type]
    Verifier().verify_batch([ScoringRequest("5", "3", settings=listed)])
    Verifier().verify("5", "3", relative_tolerance=0.5, image_size=(3, 4))
    plain = MatchSettings(options=("2", "7"))
    assert seen == [plain, plain, MatchSettings(relative_tolerance=0.5, image_size=(3, 4))]


def test_the_thought_is_read_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def extracted(completion: str, **how: bool) -> Found:
        asked.append(how)
        return Found("5", Place.BOXED)

    monkeypatch.setattr("lcot_plugin.rewards.verifier.extract_answer", extracted)
    verify("5", "5")
    verify("5", "5", include_thought=True)
    assert asked in ([{}, {"include_thought": True}], [{"include_thought": False}, {"include_thought": True}])


def test_an_alias_is_right_too(verifier: Verifier) -> None:
    aliases = ["blue", r"2\sqrt{2}", "7"]
    assert verifier.verify("blue", "red", aliases=aliases).matched
    assert verifier.verify("7", "red", aliases=aliases).answer_type == "number"
    verdict = verifier.verify(r"\boxed{\sqrt{8}}", "5", aliases=aliases)
    assert (verdict.outcome, verdict.gold, verdict.answer_type) == (Outcome.MATCHED, "5", "expression")
    assert verifier.verify(r"\boxed{\sqrt{7}}", "5", aliases=aliases).outcome is Outcome.MISMATCHED
    assert verifier.verify("", "5", aliases=aliases).outcome is Outcome.UNPARSABLE
    # What the gold answer says decides where none is matched, and an unreadable alias is none.
    assert verifier.verify("3", r"\frac{1}{}+x", aliases=["4"]).outcome is Outcome.GOLD_UNPARSABLE
    assert verifier.verify("4", r"\frac{1}{}+x", aliases=["4"]).matched
    assert verifier.verify("5", "5", aliases=["", r"\frac{1}{}+x"]).matched
    assert verifier.verify("6", "5", aliases=["", r"\frac{1}{}+x"]).outcome is Outcome.MISMATCHED


def test_an_alias_does_not_make_a_gold_answer_usable(verifier: Verifier) -> None:
    settings = MatchSettings(aliases=("5",))
    assert gold_is_usable("5", settings=settings, verifier=verifier)
    assert not gold_is_usable("many", "number", settings=settings, verifier=verifier)


@pytest.mark.parametrize("value", [None, 5, 0.5, b"5", ["5"]])
def test_what_is_no_text_is_named(value: object) -> None:
    kind = type(value).__name__
    with pytest.raises(RewardError, match=f"prediction is of type {kind}; give a str"):
        verify(value, "5")  # type: ignore[arg-type]
    with pytest.raises(RewardError, match=f"gold answer is of type {kind}; give a str"):
        verify("5", value)  # type: ignore[arg-type]
    with pytest.raises(RewardError, match=r"data set train, record 3"):
        Verifier().verify_batch([ScoringRequest(value, "5", source="train", record=3)])  # type: ignore[arg-type]


def test_an_absent_gold_answer_is_unparsable() -> None:
    requests = [ScoringRequest("5", gold) for gold in (None, "", "  ", "5" * 100_000)]  # type: ignore[arg-type]
    assert [verdict.outcome for verdict in Verifier().verify_batch(requests)] == [Outcome.GOLD_UNPARSABLE] * 4


@pytest.mark.parametrize("odd", ["\ud800", "\x00", "\udfff\ud800", "\u202e", "\n", '"', "\\", "\U0001f600"])
def test_odd_characters_survive_the_way_to_the_worker(verifier: Verifier, odd: str) -> None:
    assert not verifier.verify(rf"\boxed{{\sqrt{{8}} + {odd}}}", r"2\sqrt{2}").matched
    assert isinstance(verifier.verify(r"\sqrt{8}", rf"2\sqrt{{2}} + {odd}", answer_type="expression").outcome, Outcome)
    comparison = Comparison(Found(rf"\sqrt{{8}}{odd}", Place.BOXED), r"x+1", "expression", MatchSettings())
    assert verifier._pool.judge(comparison, 60.0).outcome is not Outcome.MATCHED


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


@pytest.mark.parametrize("gold", ["one\r\ntwo", "a\nb\nc", "Step 1: 5\n\nStep 2: 6", "It is 5 or 6", "good end\r"])
def test_what_equals_the_gold_answer_as_a_whole_is_right(verifier: Verifier, gold: str) -> None:
    assert verifier.verify(gold, gold, answer_type="text").matched
    assert not verifier.verify(gold.split()[-1], gold, answer_type="text").matched
