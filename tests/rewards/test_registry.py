from __future__ import annotations

from pathlib import Path

import pytest

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards import get_reward, register_reward, reward_names, unregister_reward
from lcot_plugin.rewards.builtin import accuracy, format_think_answer, format_think_boxed
from lcot_plugin.types import Outcome, Verdict


def constant(completions: list[str], **kwargs) -> list[float]:
    return [1.0] * len(completions)


def test_register_and_unregister() -> None:
    register_reward("constant", constant)
    try:
        assert get_reward("constant") == ("constant", constant)
        with pytest.raises(RewardError, match="there is a reward 'constant' already"):
            register_reward("constant", constant)
    finally:
        unregister_reward("constant")
    with pytest.raises(RewardError, match="unknown reward 'constant'"):
        unregister_reward("constant")


def test_names_that_cannot_be_registered() -> None:
    with pytest.raises(RewardError, match="colon"):
        register_reward("a.py:b", constant)
    with pytest.raises(RewardError, match="must be a function"):
        register_reward("number", 5)  # type: ignore[arg-type]


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(RewardError, match="did you mean 'accuracy'") as raised:
        get_reward("acuracy")
    assert all(name in str(raised.value) for name in reward_names())


def test_a_function_of_a_file_is_loaded_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def one(completions, **kwargs):\n    return [1.0] * len(completions)\nVALUE = 3\n")
    name, function = get_reward(f"{file}:one")
    assert name == "one"
    assert function(completions=["a", "b"]) == [1.0, 1.0]
    assert get_reward(f"{file}:one")[1] is function
    with pytest.raises(RewardError, match="no function 'two'; it defines one"):
        get_reward(f"{file}:two")
    with pytest.raises(RewardError, match="is int, not a function"):
        get_reward(f"{file}:VALUE")
    with pytest.raises(RewardError, match="does not exist"):
        get_reward(f"{tmp_path / 'absent.py'}:one")


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import a_module_that_is_nowhere\n")
    with pytest.raises(RewardError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        get_reward(f"{tmp_path / 'broken.py'}:f")


def test_accuracy_abstains_on_a_bad_gold_answer() -> None:
    rewards = accuracy([*(Verdict(outcome) for outcome in Outcome), None])
    assert dict(zip([*Outcome, None], rewards, strict=True)) == {
        Outcome.MATCHED: 1.0,
        Outcome.MISMATCHED: 0.0,
        Outcome.UNPARSABLE: 0.0,
        Outcome.TIMED_OUT: 0.0,
        Outcome.GOLD_UNPARSABLE: None,
        None: None,
    }


@pytest.mark.parametrize(
    ("completion", "boxed", "answer"),
    [
        (r"<think>a</think> so \boxed{5}", 1.0, 0.0),
        (r"<think>a \boxed{1}</think> \boxed{\frac{1}{2}}", 1.0, 0.0),
        ("<think>\na\n</think>\n<answer>5</answer>\n", 0.0, 1.0),
        (r"<think>a</think><answer>\boxed{5}</answer>", 1.0, 1.0),
        (r"<think>a \boxed{5}</think> five", 0.0, 0.0),
        (r"<think>a</think> \boxed{5", 0.0, 0.0),
        (r"<think>a</think> \boxed{ }", 0.0, 0.0),
        (r"a</think> \boxed{5}", 0.0, 0.0),
        (r"so <think>a</think> \boxed{5}", 0.0, 0.0),
        (r"<think>a</think><think>b</think> \boxed{5}", 0.0, 0.0),
        ("<think>a</think><answer></answer>", 0.0, 0.0),
        ("<think>a</think><answer>5</answer> or 6", 0.0, 0.0),
        ("<think>a</think><answer>5</answer><answer>6</answer>", 0.0, 0.0),
        ("<think>a <answer>5</answer></think>", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_formats(completion: str, boxed: float, answer: float) -> None:
    assert format_think_boxed([completion]) == [boxed]
    assert format_think_answer([completion]) == [answer]
