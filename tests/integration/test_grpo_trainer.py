"""What an evaluation writes and sends."""

import errno
import json
import pickle
from types import SimpleNamespace

import pytest
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from PIL import Image

from lcot_plugin.evaluate.evaluator import ProblemResult, evaluation_metrics
from lcot_plugin.integration.grpo_trainer import BEST, GrpoTrainer, _TakeBackEvalCompletions, light
from lcot_plugin.policy.trainer import GrpoTrainerMixin
from lcot_plugin.report.completions import CompletionsLog, completion_line
from lcot_plugin.survival.faults import FaultCounts
from lcot_plugin.types import Completion, Ending, Outcome, PromptRecord, Score, Verdict


def problem_result(images=(), num_tokens=3):
    record = PromptRecord([1] * 500, list(images), "How many?", "3", "problems", 0)
    completions = [Completion([4] * num_tokens, [-1.0] * num_tokens, Ending.STOPPED, "text") for _ in range(2)]
    scores = [Score({"accuracy": 1.0}, 1.0, Verdict(Outcome.MATCHED, "3", "3")) for _ in range(2)]
    return ProblemResult(record, completions, scores)


def test_what_is_sent_is_small_and_says_the_same():
    images = [
        {"bytes": b"x" * 10_000, "path": "one.png"},
        {"bytes": b"y" * 10_000},
        Image.new("RGB", (90, 90)),
        "4.png",
    ]
    result = problem_result(images)
    sent = light(result)
    assert len(pickle.dumps(sent)) < 2_000 < 20_000 < len(pickle.dumps(result))
    assert evaluation_metrics([sent]) == evaluation_metrics([result])
    lines = [completion_line(r.record, r.completions[0], r.scores[0]) for r in (sent, result)]
    assert lines[0] == lines[1] and lines[0]["images"][0] == "one.png"
    assert result.record.images == images, "the problem itself is left as it was"


@pytest.fixture
def evaluated(tmp_path):
    """`evaluated(step)` writes one evaluation at a step and gives the steps in the file afterwards."""
    trainer = GrpoTrainer.__new__(GrpoTrainer)
    trainer.args, trainer.faults = SimpleNamespace(output_dir=str(tmp_path)), FaultCounts()
    trainer.parts = SimpleNamespace(completion_line=completion_line, warn=print)

    def evaluate(step, prefix="eval"):
        trainer.state = SimpleNamespace(global_step=step)
        trainer._write_eval_completions([problem_result()], prefix)
        lines = (tmp_path / f"{prefix}_completions.jsonl").read_text().splitlines()
        return [(line["step"], line["sample"]) for line in map(json.loads, lines)]

    return evaluate


def test_a_full_disk_costs_the_lines_of_an_evaluation_and_not_the_run(evaluated, tmp_path, monkeypatch):
    evaluated(5)

    def full(self, lines):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CompletionsLog, "write", full)
    assert evaluated(10) == [(5, "greedy"), (5, 1)]


def test_problems_of_an_evaluation_are_groups(evaluated, tmp_path):
    evaluated(5)
    lines = [json.loads(line) for line in (tmp_path / "eval_completions.jsonl").read_text().splitlines()]
    assert [(line["group"], line["sample"]) for line in lines] == [(0, "greedy"), (0, 1)]


def test_log_probabilities_are_sent_only_where_they_are_logged():
    result = problem_result()
    assert light(result).completions[0].sampler_logps == []
    assert light(result, with_log_probs=True).completions == result.completions


def begin(folder, step):
    state = SimpleNamespace(is_world_process_zero=True, global_step=step)
    _TakeBackEvalCompletions().on_train_begin(SimpleNamespace(output_dir=str(folder)), state, None)


def test_evaluations_of_a_run_follow_each_other(evaluated):
    assert evaluated(5) == [(5, "greedy"), (5, 1)]
    assert evaluated(10) == [(5, "greedy"), (5, 1), (10, "greedy"), (10, 1)]


def test_an_evaluation_made_again_replaces_itself(evaluated):
    """The one after training, or a second run that only evaluates."""
    evaluated(5)
    assert evaluated(10) == evaluated(10)
    assert evaluated(0) == [(0, "greedy"), (0, 1)]


def test_a_fresh_run_starts_anew_and_a_resumed_one_goes_on(evaluated, tmp_path):
    evaluated(5), evaluated(10)
    evaluated(10, "eval_geometry")
    begin(tmp_path, 5)
    assert evaluated(8) == [(5, "greedy"), (5, 1), (8, "greedy"), (8, 1)]
    begin(tmp_path, 0)
    assert evaluated(8) == [(8, "greedy"), (8, 1)]
    assert (tmp_path / "eval_geometry_completions.jsonl").read_text() == ""


def test_the_best_weights_are_another_version_of_the_policy(monkeypatch):
    """The optimizer steps stay those of the last weights, which the servers have."""
    loaded = []
    monkeypatch.setattr(CustomSeq2SeqTrainer, "_load_best_model", lambda self: loaded.append(self))
    monkeypatch.setattr(GrpoTrainerMixin, "train", lambda self, **settings: settings)
    trainer = GrpoTrainer.__new__(GrpoTrainer)
    trainer.state = SimpleNamespace(global_step=8)
    assert trainer.policy_version == 8
    trainer._load_best_model()
    assert loaded == [trainer] and trainer.policy_version == BEST != 8
    trainer.train(resume_from_checkpoint=None)
    assert trainer.policy_version == 8
