import numpy as np
import pytest

from lcot_plugin.packing.cost import CostModel, cost_of_model, fit_cost_model


def measured(cost: CostModel, num_packs: int = 64, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Tokens, squares, patches and seconds of packs that cost what `cost` says."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(4000, 16385, num_packs)
    squares = tokens * generator.integers(500, 16000, num_packs)
    patches = generator.integers(0, 30000, num_packs)
    seconds = cost.token * tokens + cost.square * squares + cost.patch * patches + cost.fixed
    return tokens, squares, patches, seconds * (1 + noise * generator.standard_normal(num_packs))


TRUE = CostModel(token=2e-4, square=1e-8, patch=2e-5, fixed=0.05)


def test_costs_of_examples_in_both_parts() -> None:
    cost = CostModel(token=10.0, square=2.0, patch=3.0, fixed=1000.0)
    tokens, patches = np.array([1, 4]), np.array([0, 7])
    assert cost.language(tokens).tolist() == [12.0, 72.0]
    assert cost.vision(patches).tolist() == [0.0, 21.0]
    assert cost.costs(tokens, patches).tolist() == [12.0, 93.0]


@pytest.mark.parametrize("values", [(-1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (float("nan"), 1.0, 1.0), (1.0, 1.0, -0.1)])
def test_impossible_coefficients_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        CostModel(*values)


def test_cost_from_a_models_shape() -> None:
    shape = {"language_parameters": 6.5e9, "num_layers": 28, "attention_width": 3584, "vision_parameters": 675e6}
    full = cost_of_model(**shape)
    assert full.token / full.square == pytest.approx(6.5e9 / (2 * 28 * 3584))
    assert full.patch / full.token == pytest.approx(675e6 / 6.5e9)
    frozen = cost_of_model(**shape, vision_trained=False)
    assert frozen.patch == full.patch / 3
    assert (frozen.token, frozen.square) == (full.token, full.square)
    adapters = cost_of_model(**shape, language_trained=False)
    assert adapters.token == pytest.approx(full.token * 2 / 3)
    assert adapters.square == full.square
    assert cost_of_model(language_parameters=1e9, num_layers=2, attention_width=64).patch == 0


def test_fit_finds_the_coefficients() -> None:
    fitted = fit_cost_model(*measured(TRUE, noise=0.0))
    assert fitted.token == pytest.approx(TRUE.token, rel=0.02)
    assert fitted.square == pytest.approx(TRUE.square, rel=0.02)
    assert fitted.patch == pytest.approx(TRUE.patch, rel=0.02)
    assert fitted.fixed == pytest.approx(TRUE.fixed, rel=0.1)


def test_fit_is_not_thrown_off_by_a_few_slow_packs() -> None:
    tokens, squares, patches, seconds = measured(TRUE, noise=0.01)
    right = fit_cost_model(tokens, squares, patches, seconds)
    seconds[[0, 1, 40]] *= [30, 5, 10]
    fitted = fit_cost_model(tokens, squares, patches, seconds)
    assert fitted.token == pytest.approx(right.token, rel=0.1)
    assert fitted.square == pytest.approx(right.square, rel=0.1)
    assert fitted.patch == pytest.approx(right.patch, rel=0.1)


def test_fit_without_patches_has_no_cost_for_them() -> None:
    tokens, squares, patches, _ = measured(TRUE)
    text = fit_cost_model(tokens, squares, 0 * patches, TRUE.token * tokens + TRUE.square * squares)
    assert text.patch == 0
    assert text.token == pytest.approx(TRUE.token, rel=0.02)


def test_fit_gives_the_time_of_packs_of_one_length_to_their_tokens() -> None:
    _, squares, patches, _ = measured(TRUE)
    tokens = np.full(len(squares), 16000)
    seconds = TRUE.token * tokens + TRUE.square * squares + TRUE.patch * patches
    fitted = fit_cost_model(tokens, squares, patches, seconds)
    assert fitted.token == pytest.approx(TRUE.token, rel=0.05)
    assert fitted.square == pytest.approx(TRUE.square, rel=0.05)
    assert fitted.fixed < 0.05 * seconds.mean()


def test_fit_never_returns_a_negative_coefficient() -> None:
    tokens, squares, patches, seconds = measured(TRUE)
    # Packs with more patches are faster here, which no model of costs can say.
    fitted = fit_cost_model(tokens, squares, patches, seconds - 1.5 * TRUE.patch * patches)
    assert fitted.patch == 0
    assert fitted.token > 0


def test_fit_of_times_that_nothing_explains_still_costs_tokens() -> None:
    tokens, squares, patches, _ = measured(TRUE)
    fitted = fit_cost_model(tokens, squares, patches, 1 / tokens)
    assert fitted.token > 0


def test_too_few_or_impossible_measurements_are_refused() -> None:
    tokens, squares, patches, seconds = measured(TRUE)
    with pytest.raises(ValueError, match="4 coefficients cannot be fitted to 3 timed packs"):
        fit_cost_model(tokens[:3], squares[:3], patches[:3], seconds[:3])
    with pytest.raises(ValueError, match="cannot be fitted to 0 timed packs"):
        fit_cost_model([], [], [], [])
    with pytest.raises(ValueError, match="positive"):
        fit_cost_model(tokens, squares, patches, 0 * seconds)
