"""What a verdict is asked with: the completion, the gold answer and all that says how the two are compared."""

from __future__ import annotations

from lcot_plugin.rewards.requests import verification_request
from lcot_plugin.rewards.verifier import Verifier
from lcot_plugin.types import GoldAnswer, MatchSettings, Outcome, ScoringRequest


def test_nothing_of_a_gold_answer_is_lost() -> None:
    settings = MatchSettings(absolute_tolerance=0.5)
    request = verification_request("The answer is 5.", GoldAnswer("5", "number", settings), 3)
    assert request == ScoringRequest("The answer is 5.", "5", answer_type="number", record=3, settings=settings)
    assert verification_request("5", GoldAnswer("5")) == ScoringRequest("5", "5")


def test_its_settings_decide() -> None:
    strict, lenient = GoldAnswer("5", "number"), GoldAnswer("5", "number", MatchSettings(absolute_tolerance=0.5))
    requests = [verification_request("5.4", gold) for gold in (strict, lenient)]
    assert [verdict.outcome for verdict in Verifier().verify_batch(requests)] == [Outcome.MISMATCHED, Outcome.MATCHED]
