"""trl.rewards as the scorer calls them, against the same functions called by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards import Scorer, get_reward
from lcot_plugin.rewards.functions.registry import describe
from lcot_plugin.rewards.functions.trl_rewards import names
from lcot_plugin.types import ScoringRequest

REQUESTS = [
    ScoringRequest(r"<think>a</think> $\boxed{5}$", "5", "How many?", source="demo", record=3, completion_ids=[1] * 90),
    ScoringRequest(r"a</think> $\boxed{6}$", "5", "How many?", source="demo", record=3, completion_ids=[1] * 120),
]


def test_what_the_installed_trl_has() -> None:
    assert names() == ["accuracy_reward", "get_soft_overlong_punishment", "think_format_reward"]


def test_rewards_of_trl_are_given_conversations() -> None:
    specs = [
        "trl:think_format_reward",
        "trl:accuracy_reward",
        "trl:get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)",
    ]
    with Scorer(specs) as scorer:
        scores = scorer.score(REQUESTS)
    assert [score.rewards for score in scores] == [
        {"think_format_reward": 1.0, "accuracy_reward": 1.0, "soft_overlong_punishment": -0.5},
        {"think_format_reward": 0.0, "accuracy_reward": 0.0, "soft_overlong_punishment": -1.0},
    ]
    assert scores[0].total == pytest.approx(1.5)


def test_the_name_may_be_written_as_trl_imports_it() -> None:
    assert get_reward("trl.rewards:think_format_reward")[1](completions=["<think>a</think>"]) == [1.0]


def test_a_users_function_behind_trl_is_given_conversations(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def roles(prompts, completions, completion_ids, ground_truth, trainer_state, **kwargs):\n"
        "    assert prompts[0] == [{'role': 'user', 'content': 'How many?'}] and trainer_state == 'state'\n"
        "    assert kwargs['solution'] == ground_truth == ['5', '5']\n"
        "    return [len(c[0]['content']) + len(ids) for c, ids in zip(completions, completion_ids)]\n"
        "async def one(completion, answer):\n"
        "    return float(completion[0]['role'] == 'assistant' and answer == '5')\n"
        "class Longer:\n"
        "    def __init__(self, least: int):\n"
        "        self.least = least\n"
        "    def __call__(self, completions, **kwargs):\n"
        "        return [float(len(c[0]['content']) >= self.least) for c in completions]\n"
    )
    with Scorer([f"trl:{file}:roles", f"trl:{file}:one", f"trl:{file}:Longer(least=22)"]) as scorer:
        scorer.trainer_state = "state"
        scores = scorer.score(REQUESTS)
    lengths = [len(request.completion) for request in REQUESTS]
    assert [score.rewards["roles"] for score in scores] == [lengths[0] + 90, lengths[1] + 120]
    assert [score.rewards["one"] for score in scores] == [1.0, 1.0]
    assert [score.rewards["Longer"] for score in scores] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "trl:reasoning_accuracy",
            "trl.rewards has no 'reasoning_accuracy' in the installed trl; it has accuracy_reward",
        ),
        ("trl:get_soft_overlong_punishment", "needs max_completion_len, soft_punish_cache"),
        ("trl:get_soft_overlong_punishment(max_length=5)", "no parameter 'max_length'; it has max_completion_len: int"),
        ("trl:get_soft_overlong_punishment(max_completion_len='5', soft_punish_cache=1)", "int cannot be '5'"),
        ("trl:think_format_reward(strict=True)", "no parameter 'strict'; it has none"),
    ],
)
def test_specs_that_trl_cannot_serve(spec: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        get_reward(spec)


def test_they_are_described() -> None:
    (row,) = [row for row in describe(with_trl=True) if row.name == "trl:get_soft_overlong_punishment"]
    assert row.parameters == "max_completion_len, soft_punish_cache"
    assert row.origin == "trl"
    assert "overlong" in row.summary


def test_a_process_without_llamafactory_can_use_them() -> None:
    """And the other rewards do without trl and torch."""
    code = (
        "import sys\n"
        "from lcot_plugin.rewards import get_reward\n"
        "get_reward('accuracy'), get_reward('repetition')\n"
        "assert not {'trl', 'torch', 'sympy'} & set(sys.modules)\n"
        "print(get_reward('trl:think_format_reward')[1](completions=['<think>a</think>']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[1.0]", done.stderr
