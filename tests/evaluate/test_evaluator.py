from dataclasses import replace

import pytest

from lcot_plugin.evaluate.evaluator import Evaluator, ProblemResult, evaluation_metrics
from lcot_plugin.rewards import extract_answer
from lcot_plugin.rewards.requests import scoring_request
from lcot_plugin.types import (
    Completion,
    EncodedPrompt,
    Ending,
    Outcome,
    PromptRecord,
    RolloutGroup,
    SamplingParams,
    Score,
    Verdict,
)

RIGHT, WRONG, UNREADABLE = Outcome.MATCHED, Outcome.MISMATCHED, Outcome.UNPARSABLE
BAD_GOLD, TIMED_OUT = Outcome.GOLD_UNPARSABLE, Outcome.TIMED_OUT


def problem(record, source="problems"):
    return PromptRecord([1, 2, 3], [], f"question {record}", f"gold {record}", source, record, answer_type="number")


def result(*outcomes, source="problems", lengths=None, truncated=()):
    """One problem: the greedy outcome first; None is a completion that the verifier did not judge."""
    lengths = lengths or [2] * len(outcomes)
    completions = [
        Completion([7] * length, [0.0] * length, Ending.TRUNCATED if i in truncated else Ending.STOPPED, "text")
        for i, length in enumerate(lengths)
    ]
    scores = [Score({"accuracy": None}, None, None if outcome is None else Verdict(outcome)) for outcome in outcomes]
    return ProblemResult(problem(0, source), completions, scores)


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_greedy_and_sampled_are_kept_apart():
    """Greedy right in 1 of 4 problems; two samples each, of which 3 of 8 are right, in 2 problems."""
    results = [result(RIGHT, WRONG, WRONG), result(WRONG, RIGHT, RIGHT)]
    results += [result(WRONG, RIGHT, WRONG), result(WRONG, WRONG, WRONG)]
    metrics = evaluation_metrics(results)
    assert metrics["accuracy"] == pytest.approx(25.0)
    assert metrics["accuracy_stderr"] == pytest.approx(100 * (0.25 * 0.75 / 4) ** 0.5)
    assert metrics["avg@2"] == metrics["pass@1"] == pytest.approx(37.5)
    assert metrics["pass@2"] == pytest.approx(50.0)
    assert metrics["problems"] == 4.0 and metrics["gold_unparsable"] == 0.0


def test_problems_without_a_readable_gold_answer_are_counted_and_left_out():
    bad = result(BAD_GOLD, BAD_GOLD, lengths=[100, 100], truncated=(0, 1), source="others")
    unjudged = result(None, None, lengths=[100, 100], truncated=(0, 1))
    good = [result(RIGHT, WRONG), result(RIGHT, RIGHT)]
    metrics = evaluation_metrics([bad, *good, unjudged])
    assert metrics.pop("problems") == 4.0 and metrics.pop("gold_unparsable") == 2.0
    alone = evaluation_metrics(good)
    assert metrics == {key: value for key, value in alone.items() if key not in ("problems", "gold_unparsable")}
    assert metrics["accuracy"] == 100.0 and metrics["truncated"] == 0.0 and metrics["completion_length"] == 2.0


def test_nothing_to_judge():
    assert evaluation_metrics([]) == {"problems": 0.0, "gold_unparsable": 0.0}
    assert evaluation_metrics([result(BAD_GOLD)]) == {"problems": 1.0, "gold_unparsable": 1.0}


def test_shares_are_over_all_completions():
    """Of four completions one was truncated, two have no answer, one verification timed out."""
    results = [
        result(RIGHT, UNREADABLE, lengths=[3, 12], truncated=(1,)),
        result(TIMED_OUT, UNREADABLE, lengths=[4, 1]),
    ]
    metrics = evaluation_metrics(results)
    assert metrics["truncated"] == 25.0 and metrics["completion_length"] == 5.0
    assert metrics["unparsable"] == 50.0 and metrics["timed_out"] == 25.0
    assert metrics["accuracy"] == 50.0


def test_greedy_alone_has_no_sampled_metrics():
    metrics = evaluation_metrics([result(RIGHT), result(WRONG)])
    assert metrics["accuracy"] == 50.0
    assert not [key for key in metrics if "@" in key]


def test_accuracy_by_source_where_there_are_several():
    results = [result(RIGHT, source="b"), result(WRONG, source="a"), result(RIGHT, source="a")]
    metrics = evaluation_metrics(results)
    assert (metrics["accuracy/a"], metrics["accuracy/b"]) == (50.0, 100.0)
    assert not [key for key in evaluation_metrics(results[1:]) if "/" in key]


def test_variants_of_problems_have_a_worst_case():
    """Greedy alone decides, and a variant whose gold answer cannot be read is missing, not wrong."""
    results = [result(RIGHT, WRONG), result(RIGHT, WRONG), result(RIGHT, RIGHT), result(BAD_GOLD, BAD_GOLD)]
    for place, problem_id in enumerate(("one", "two", "one", "two")):
        results[place].record = replace(results[place].record, problem_id=problem_id)
    metrics = evaluation_metrics(results)
    assert metrics["worst_case"] == 100.0 and metrics["variants"] == 2.0 and metrics["variants_missing"] == 1.0
    results[2].scores = [Score({}, None, Verdict(WRONG))] * 2
    assert evaluation_metrics(results)["worst_case"] == 50.0
    assert "worst_case" not in evaluation_metrics([result(RIGHT)])


# --- running ----------------------------------------------------------------------------------------------------------


class Engine:
    """Writes its own call number, and keeps what it was asked."""

    def __init__(self):
        self.calls = []

    def generate(self, model, prompts, sampling, slots, progress=None):
        self.calls.append((model, [prompt.record.record for prompt in prompts], sampling, list(slots)))
        kind = "greedy" if sampling.temperature == 0 else "sampled"
        return [
            RolloutGroup(
                prompt,
                [
                    Completion([i], [0.0], Ending.STOPPED, f"{kind} {i} of {prompt.record.record}")
                    for i in range(sampling.num_generations)
                ],
            )
            for prompt in prompts
        ]


class RecordingScorer:
    """A score that says which completion it is for."""

    def __init__(self):
        self.requests = []

    def score(self, requests):
        self.requests.append(requests)
        return [Score({request.completion: 1.0}, 1.0, Verdict(RIGHT)) for request in requests]


@pytest.fixture
def sampling():
    return SamplingParams(num_generations=2, max_new_tokens=9, temperature=0.8, top_p=0.9, seed=5)


def evaluate(sampling, num_problems, batch_size=2):
    engine, scorer, done = Engine(), RecordingScorer(), []
    evaluator = Evaluator(
        engine, scorer, lambda record: EncodedPrompt(record, {}), sampling, batch_size, scoring_request
    )
    # Numbers that are not places: a slot is the record's own, whatever batch it falls in.
    records = [problem(10 * i) for i in range(num_problems)]
    return engine, scorer, done, evaluator.run("model", records, done.append)


def test_run_writes_greedy_then_samples(sampling):
    engine, scorer, done, results = evaluate(sampling, 3)
    greedy = SamplingParams(num_generations=1, max_new_tokens=9, temperature=0.0, top_p=0.9, seed=5)
    assert engine.calls == [
        ("model", [0, 10], greedy, [0, 10]),
        ("model", [0, 10], sampling, [0, 10]),
        ("model", [20], greedy, [20]),
        ("model", [20], sampling, [20]),
    ]
    assert done == [2, 1]
    assert [result.record.record for result in results] == [0, 10, 20]
    for result in results:
        number = result.record.record
        texts = [completion.text for completion in result.completions]
        assert texts == [f"greedy 0 of {number}", f"sampled 0 of {number}", f"sampled 1 of {number}"]
        # Every score belongs to its completion.
        assert [list(score.rewards) for score in result.scores] == [[text] for text in texts]
    assert [len(requests) for requests in scorer.requests] == [6, 3]


def test_no_samples(sampling):
    from dataclasses import replace

    engine, _, _, results = evaluate(replace(sampling, num_generations=0), 2)
    assert len(engine.calls) == 1
    assert [len(result.completions) for result in results] == [1, 1]


def test_scoring_request():
    completion = Completion([4, 5], [0.0, 0.0], Ending.TRUNCATED, "an answer")
    request = scoring_request(problem(6, "geometry"), completion)
    assert (request.completion, request.gold, request.question) == ("an answer", "gold 6", "question 6")
    assert (request.answer_type, request.source, request.record) == ("number", "geometry", 6)
    assert (request.ending, request.completion_ids) == (Ending.TRUNCATED, [4, 5])


def test_a_thought_that_the_prompt_opens_is_judged_with_its_opening():
    """A truncated thought has no tag of its own; its last line must not pass for an answer."""
    record = replace(problem(6, "geometry"), opening="<think>\n")
    completion = Completion([1], [0.0], Ending.TRUNCATED, "so it is\n5")
    assert scoring_request(record, completion).completion == "<think>\nso it is\n5"
    assert extract_answer(scoring_request(record, completion).completion) is None
