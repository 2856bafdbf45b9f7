from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lcot_plugin.errors import ArgumentError, RewardError
from lcot_plugin.rewards import Scorer, register_reward, unregister_reward
from lcot_plugin.types import Ending, Outcome, ScoringRequest

REQUESTS = [
    ScoringRequest(r"<think>a</think> \boxed{5}", "5", "How many?", source="demo", record=3, completion_ids=[1, 2]),
    ScoringRequest("6", "5", source="demo", record=3, ending=Ending.TRUNCATED),
    ScoringRequest("6", "many", answer_type="number", source="demo", record=4),
]


@pytest.fixture
def reward() -> Iterator[dict]:
    """Registers what the test puts under "function" as the reward `mine`, and takes it away again."""
    held: dict = {}
    register_reward("mine", lambda **keywords: held["function"](**keywords))
    yield held
    unregister_reward("mine")


def test_rewards_are_kept_unweighted_and_summed_weighted() -> None:
    with Scorer(["accuracy", "format_think_boxed"], [1.0, 0.5]) as scorer:
        scores = scorer.score(REQUESTS)
    assert [score.rewards for score in scores] == [
        {"accuracy": 1.0, "format_think_boxed": 1.0},
        {"accuracy": 0.0, "format_think_boxed": 0.0},
        {"accuracy": None, "format_think_boxed": 0.0},
    ]
    assert [score.total for score in scores] == [1.5, 0.0, 0.0]
    outcomes = [score.verdict.outcome for score in scores if score.verdict]
    assert outcomes == [Outcome.MATCHED, Outcome.MISMATCHED, Outcome.GOLD_UNPARSABLE]


def test_nothing_to_go_by_is_none_and_not_zero() -> None:
    scorer = Scorer(["accuracy"])
    assert [score.total for score in scorer.score(REQUESTS)] == [1.0, 0.0, None]
    (score,) = scorer.score([ScoringRequest("5", "")])
    assert score.verdict is None
    assert score.total is None
    assert scorer.score([]) == []


def test_a_function_is_given_every_keyword(reward: dict) -> None:
    seen: dict = {}
    reward["function"] = lambda **keywords: seen.update(keywords) or [None] * 3
    Scorer(["mine"]).score(REQUESTS)
    assert seen["prompts"][0] == "How many?"
    assert seen["completion_ids"] == [[1, 2], [], []]
    assert seen["endings"] == ["stopped", "truncated", "stopped"]
    assert seen["gold"] == ["5", "5", "many"]
    assert seen["answer_type"] == ["auto", "auto", "number"]
    assert seen["source"] == ["demo"] * 3
    assert [verdict.matched for verdict in seen["verdicts"]] == [True, False, False]


def test_a_users_function_is_given_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def length(completions, gold):\n    return [len(c) - len(g) for c, g in zip(completions, gold)]\n")
    scores = Scorer([f"{file}:length", "accuracy"], [2.0, 1.0]).score(REQUESTS[1:2])
    assert scores[0].rewards == {"length": 0.0, "accuracy": 0.0}


def test_a_function_that_raises_is_named_with_its_records(reward: dict) -> None:
    def fail(**keywords):
        raise KeyError("gone")

    reward["function"] = fail
    with pytest.raises(
        RewardError, match=r"'mine' raised KeyError: 'gone', on data set demo, record 3; .* record 4"
    ) as raised:
        Scorer(["mine"]).score(REQUESTS)
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 values for 3 completions"),
        (None, "returned NoneType for 3 completions"),
        ([1.0, "high", 0.0], "returned 'high' for data set demo, record 3"),
        ([1.0, 0.0, float("nan")], "returned nan for data set demo, record 4"),
    ],
)
def test_results_that_cannot_be_used(reward: dict, returned, message: str) -> None:
    reward["function"] = lambda **keywords: returned
    with pytest.raises(RewardError, match=message):
        Scorer(["mine"]).score(REQUESTS)


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="1 reward weights for 2 reward functions"):
        Scorer(["accuracy", "format_think_boxed"], [1.0])
    with pytest.raises(ArgumentError, match="no reward function"):
        Scorer([])
    with pytest.raises(ArgumentError, match="share a name"):
        Scorer(["accuracy", "accuracy"])
    with pytest.raises(RewardError, match="unknown reward 'accurate'"):
        Scorer(["accurate"])
