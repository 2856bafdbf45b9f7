from __future__ import annotations

import asyncio
import threading
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


def test_a_reward_given_twice_is_named_with_its_parameters() -> None:
    specs = ["repetition(ngram_size=1)", "repetition(ngram_size=2, max_penalty=-0.5)", "accuracy", "accuracy@number"]
    with Scorer(specs, [1.0, 2.0, 3.0, 4.0]) as scorer:
        assert scorer.weights == {
            "repetition_ngram_size_1": 1.0,
            "repetition_ngram_size_2_max_penalty_-0.5": 2.0,
            "accuracy": 3.0,
            "accuracy_number": 4.0,
        }
        assert list(scorer.functions) == list(scorer.weights)


def test_max_new_tokens_is_the_length_where_none_is_written() -> None:
    with Scorer(["soft_overlong", "soft_overlong(max_length=4, cache=4)"], max_new_tokens=2) as scorer:
        scores = scorer.score(REQUESTS[:1])
    assert scores[0].rewards == {"soft_overlong": -1.0, "soft_overlong_max_length_4_cache_4": -0.5}


def test_a_restricted_reward_judges_records_of_its_kinds_only(reward: dict) -> None:
    seen: list = []
    reward["function"] = lambda **keywords: seen.append(keywords["gold"]) or [1.0] * len(keywords["gold"])
    requests = [
        ScoringRequest("5", "5"),
        ScoringRequest("B", "B"),
        ScoringRequest("5", "five", answer_type="number"),
        ScoringRequest("red", "red"),
    ]
    with Scorer(["mine@number|choice", "accuracy"]) as scorer:
        assert [score.rewards["mine"] for score in scorer.score(requests)] == [1.0, 1.0, 1.0, None]
        assert seen == [["5", "B", "five"]]
        assert [score.rewards["mine"] for score in scorer.score(requests[3:])] == [None]
        assert len(seen) == 1  # not called for nothing
    with pytest.raises(RewardError, match="answer_type 'crate' is unknown"):
        Scorer(["iou@crate"])


USERS = """
import asyncio
import threading

def batch(prompts, completions, completion_ids, solution, trainer_state, **kwargs):
    assert kwargs["answer"] == kwargs["ground_truth"] == kwargs["gold"] == solution
    assert isinstance(completions[0], str)
    return [len(ids) for ids in completion_ids]

def sample(completion: str, gold: str, **kwargs):
    assert kwargs["ending"] in ("stopped", "truncated") and kwargs["settings"].min_iou == 0.5
    return None if gold == "many" else completion == "6"

arrived = asyncio.Barrier(4)

async def slow(completion, record):
    await arrived.wait()  # of three samples and one batch: passes only where all of them wait at the same time
    return record

async def slow_batch(completions):
    await arrived.wait()
    return [0.25] * len(completions)

async def failing(completion, record):
    await asyncio.sleep(0)
    return 1 / (record - 3)

def needs(completions, difficulty):
    return []

def mixed(completion, prompts):
    return 1.0
"""


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users.py"
    file.write_text(USERS)
    return file


def test_users_functions_in_every_form(users: Path) -> None:
    with Scorer([f"{users}:{name}" for name in ("batch", "sample", "slow", "slow_batch")]) as scorer:
        rewards = [score.rewards for score in scorer.score(REQUESTS)]
    assert rewards == [
        {"batch": 2.0, "sample": 0.0, "slow": 3.0, "slow_batch": 0.25},
        {"batch": 0.0, "sample": 1.0, "slow": 3.0, "slow_batch": 0.25},
        {"batch": 0.0, "sample": None, "slow": 4.0, "slow_batch": 0.25},
    ]


def test_coroutines_run_where_an_event_loop_runs_already(users: Path) -> None:
    async def in_a_notebook() -> list:
        with Scorer([f"{users}:slow_batch", f"{users}:slow"]) as scorer:
            return scorer.score(REQUESTS)

    assert [score.rewards["slow_batch"] for score in asyncio.run(in_a_notebook())] == [0.25] * 3


def test_parameters_that_no_reward_is_given(users: Path) -> None:
    with pytest.raises(RewardError, match=r"needs difficulty, which no record provides: write needs\(difficulty=...\)"):
        Scorer([f"{users}:needs"])
    with pytest.raises(RewardError, match=r"'mixed' requires 'prompts', which .* given prompt, completion, record"):
        Scorer([f"{users}:mixed"])


def test_a_sample_that_fails_stops_the_run_with_its_record(users: Path) -> None:
    with (
        Scorer([f"{users}:failing"]) as scorer,
        pytest.raises(
            RewardError, match=r"'failing' raised ZeroDivisionError: .*, on data set demo, record 3; mend it"
        ),
    ):
        scorer.score(REQUESTS[::-1])


def test_skip_leaves_out_what_failed_and_counts_it(users: Path, reward: dict, caplog: pytest.LogCaptureFixture) -> None:
    def fail(**keywords):
        raise KeyError("gone")

    reward["function"] = fail
    with Scorer([f"{users}:failing", "mine", "accuracy"], on_error="skip") as scorer:
        for _ in range(2):
            scores = scorer.score(REQUESTS)
        assert [score.rewards for score in scores] == [
            {"failing": None, "mine": None, "accuracy": 1.0},
            {"failing": None, "mine": None, "accuracy": 0.0},
            {"failing": 1.0, "mine": None, "accuracy": None},
        ]
        assert [score.total for score in scores] == [1.0, 0.0, 1.0]
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 2  # once per function and kind of error
        assert "'failing' raised ZeroDivisionError: division by zero, on data set demo, record 3." in warnings[0]
        assert "reward_errors/mine" in warnings[1]
        assert scorer.take_counts() == {
            "reward_errors/failing": 4,
            "reward_errors/mine": 6,
            "reward_errors/accuracy": 0,
        }
        assert set(scorer.take_counts().values()) == {0}


def test_skip_covers_what_is_no_number(reward: dict) -> None:
    reward["function"] = lambda **keywords: [1.0, float("inf"), ValueError("of this one")]
    with Scorer(["mine"], on_error="skip") as scorer:
        assert [score.total for score in scorer.score(REQUESTS)] == [1.0, None, None]
        assert scorer.take_counts() == {"reward_errors/mine": 2}
    with Scorer(["mine"]) as scorer:
        assert scorer.take_counts() == {}


def test_numbers_of_every_library(reward: dict) -> None:
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    for returned in (
        [True, numpy.float32(0.5), torch.tensor(2)],
        numpy.array([1.0, 0.5, 2.0]),
        torch.tensor([1.0, 0.5, 2.0]),
        (numpy.bool_(True), numpy.array(0.5), 2),
    ):
        reward["function"] = lambda returned=returned, **keywords: returned
        with Scorer(["mine"]) as scorer:
            values = [score.rewards["mine"] for score in scorer.score(REQUESTS)]
        assert values == [1.0, 0.5, 2.0]
        assert {type(value) for value in values} == {float}


def test_functions_are_closed_and_counted(reward: dict) -> None:
    class Holder:
        closed = 0

        def __call__(self, completions, **kwargs):
            return [None] * len(completions)

        def take_counts(self):
            return {"unclear": 3}

        def close(self):
            Holder.closed += 1

    register_reward("holder", Holder)
    try:
        with Scorer(["holder"]) as scorer:
            assert scorer.take_counts() == {"holder/unclear": 3}
    finally:
        unregister_reward("holder")
    assert Holder.closed == 1


def test_a_number_beyond_floating_point_is_an_error_like_others() -> None:
    def huge(completions: list[str]) -> list[int]:
        return [10**5000] * len(completions)

    register_reward("huge", huge)
    try:
        with pytest.raises(RewardError, match="returned 'an integer beyond floating point' for data set"):
            Scorer(["huge"]).score(REQUESTS)
        assert [score.rewards["huge"] for score in Scorer(["huge"], on_error="skip").score(REQUESTS)] == [None] * len(
            REQUESTS
        )
    finally:
        unregister_reward("huge")


def test_coroutines_end_with_an_interruption() -> None:
    ended = threading.Event()

    async def slow(completions: list[str]) -> list[float]:
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()
        return [0.0] * len(completions)

    def interrupted(completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    register_reward("slow", slow)
    register_reward("interrupted", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            Scorer(["slow", "interrupted"]).score(REQUESTS)
        assert ended.wait(60.0)
    finally:
        unregister_reward("slow")
        unregister_reward("interrupted")
