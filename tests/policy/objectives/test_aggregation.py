import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcot_plugin.policy.objectives.aggregation import token_weights

LENGTHS, TRAINED = [3, 7, 4, 2], [True, False, True, True]


def weights(aggregation: str, lengths: list[int] = LENGTHS, trained: list[bool] = TRAINED) -> list[float]:
    return token_weights(aggregation, lengths, trained, micro_batch_size=2, max_completion_length=10)


def test_weights_by_hand():
    assert weights("sequence") == pytest.approx([1 / 12, 0, 1 / 16, 1 / 8]), "the masked completion is counted"
    assert weights("token") == pytest.approx([1 / 9, 0, 1 / 9, 1 / 9]), "its tokens are not"
    assert weights("constant") == pytest.approx([1 / 40, 0, 1 / 40, 1 / 40])
    assert weights("micro_batch") == pytest.approx([1 / 6, 0, 1 / 12, 1 / 12])


def test_a_micro_batch_without_trained_tokens_still_counts():
    assert weights("micro_batch", trained=[False, False, True, True]) == pytest.approx([0, 0, 1 / 12, 1 / 12])


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant", "micro_batch"])
def test_nothing_trained_weighs_nothing(aggregation: str):
    assert weights(aggregation, trained=[False] * 4) == [0.0] * 4
    assert weights(aggregation, [], []) == []


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=12))
def test_means_add_up_to_one(completions: list[tuple[int, bool]]):
    lengths, trained = (list(values) for values in zip(*completions, strict=True))

    def total(aggregation: str) -> float:
        return sum(w * length for w, length in zip(weights(aggregation, lengths, trained), lengths, strict=True))

    assert total("token") == pytest.approx(float(any(trained)))
    assert total("sequence") == pytest.approx(sum(trained) / len(trained))
    batches = [any(trained[i : i + 2]) for i in range(0, len(trained), 2)]
    assert total("micro_batch") == pytest.approx(sum(batches) / len(batches))
