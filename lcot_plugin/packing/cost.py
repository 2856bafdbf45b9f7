"""What a pack costs: from token, patch and segment counts to seconds or any unit proportional to them.

An example of l tokens and p patches costs `token * l + square * l**2` in the language model (attention sees the
example's own tokens only, so its part is quadratic in the example and not in the pack) and `patch * p` in the vision
tower. A pack costs the sum over its examples plus `fixed`. The two parts stay apart because a rank computes them one
after the other, so ranks may wait for each other after each. Consumed by the planner and its statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

OUTLIER_DEVIATIONS = 4.0
"""A measurement further from the fit than this many (robust) standard deviations is left out of the second fit: the
first step compiles kernels, a checkpoint or the garbage collector stops one."""


@dataclass(frozen=True)
class CostModel:
    """Coefficients of the cost of a pack. Only their ratios matter to a plan; the unit is the caller's."""

    token: float
    """Per token."""
    square: float
    """Per squared token of an example."""
    patch: float
    """Per patch that the vision tower reads."""
    fixed: float = 0.0
    """Per pack, whatever it holds: launching kernels, waiting for the data. It moves nothing in a plan."""

    def __post_init__(self) -> None:
        coefficients = (self.token, self.square, self.patch, self.fixed)
        if not all(np.isfinite(value) and value >= 0 for value in coefficients) or self.token + self.square <= 0:
            raise ValueError(f"The coefficients of {self} must be finite, none negative, and text must cost something.")

    def language(self, tokens: np.ndarray) -> np.ndarray:
        """Cost of each example in the language model, float64, shape of `tokens`; without `fixed`."""
        lengths = np.asarray(tokens, dtype=np.float64)
        return self.token * lengths + self.square * lengths * lengths

    def vision(self, patches: np.ndarray) -> np.ndarray:
        """Cost of each example in the vision tower, float64, shape of `patches`."""
        return self.patch * np.asarray(patches, dtype=np.float64)

    def costs(self, tokens: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """Cost of each example in both, float64; without `fixed`."""
        return self.language(tokens) + self.vision(patches)


def cost_of_model(
    *,
    language_parameters: float,
    num_layers: int,
    attention_width: int,
    vision_parameters: float = 0.0,
    language_trained: bool = True,
    vision_trained: bool = True,
) -> CostModel:
    """The cost in floating-point operations, from a model's shape.

    A forward pass takes 2 operations per parameter and token; so does the gradient of the activations, and again that
    of the weights. Attention takes `4 * attention_width` per layer and pair of tokens; the half that the causal mask
    saves is not deducted, because attention kernels reach about half the speed of matrix products.

    Args:
        language_parameters: of the language model, without the input embedding.
        num_layers: of the language model.
        attention_width: number of query heads times their dimension.
        vision_parameters: of the vision tower and its projector; 0 without one.
        language_trained: False where most weights are frozen and only adapters train: the gradient passes through
            (2 passes), the weights' own is not computed (else 3).
        vision_trained: False where the vision tower is frozen: it runs forward only (1 pass, else 3).

    Example: 6.5e9 parameters, 28 layers, width 3584: token / square = 6.5e9 / (2 * 28 * 3584) = 32,400: an example of
    32,400 tokens spends as much on attention as on everything else.
    """
    language_passes = 3 if language_trained else 2
    vision_passes = 3 if vision_trained else 1
    # Attention has no weights of its own: forward, and backward of twice that, trained or not.
    return CostModel(
        token=2.0 * language_parameters * language_passes,
        square=4.0 * attention_width * num_layers * 3,
        patch=2.0 * vision_parameters * vision_passes,
    )


def fit_cost_model(tokens: Any, squares: Any, patches: Any, seconds: Any) -> CostModel:
    """The cost in seconds, fitted to measured packs by non-negative least squares.

    Args:
        tokens: [m] tokens of each measured pack.
        squares: [m] sum over its examples of their squared lengths.
        patches: [m] patches of each.
        seconds: [m] time that one rank needed for each, forward and backward.

    A resource that no pack has (no patches in text-only data) gets the coefficient 0. Where all packs hold the same
    number of tokens, time per token and time per pack cannot be told apart: the tokens get it. Measurements far from
    the fit are left out of a second one.

    Raises:
        ValueError: fewer measurements than coefficients that must be found, or times that are not positive.
    """
    measured = np.asarray(seconds, dtype=np.float64)
    columns = np.stack([np.asarray(column, dtype=np.float64) for column in (tokens, squares, patches)], axis=1)
    present = columns.max(axis=0, initial=0.0) > 0
    num_unknown = int(present.sum()) + 1
    if len(measured) < num_unknown or not present[0]:
        raise ValueError(
            f"A cost model with {num_unknown} coefficients cannot be fitted to {len(measured)} timed packs: time at "
            f"least {num_unknown} packs, or give the costs instead of fitting them."
        )
    if not np.all(np.isfinite(measured)) or measured.min() <= 0:
        raise ValueError("Times of packs must be positive seconds.")

    coefficients = _non_negative_fit(columns, measured, present)
    residuals = measured - columns @ coefficients[:3] - coefficients[3]
    deviation = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    used = np.abs(residuals - np.median(residuals)) <= OUTLIER_DEVIATIONS * deviation + 1e-9 * measured.max()
    if num_unknown <= used.sum() < len(measured) and columns[used, 0].max() > 0:
        coefficients = _non_negative_fit(columns[used], measured[used], present)
    if coefficients[0] + coefficients[1] <= 0:
        # Nothing grows with the tokens within the noise; a plan still has to level something.
        coefficients[0] = coefficients[3] / columns[:, 0].mean() or measured.mean() / columns[:, 0].mean()
        coefficients[3] = 0.0
    token, square, patch, fixed = (float(value) for value in coefficients)
    return CostModel(token=token, square=square, patch=patch, fixed=fixed)


def _non_negative_fit(columns: np.ndarray, seconds: np.ndarray, present: np.ndarray) -> np.ndarray:
    """[4] token, square, patch and fixed coefficients >= 0 of least squares."""
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    scales = np.where(present, columns.max(axis=0), 1.0)
    scales = np.append(np.where(scales > 0, scales, 1.0), 1.0)
    matrix = np.zeros((len(seconds) + 1, 4))
    matrix[:-1] = np.column_stack([columns, np.ones(len(seconds))]) / scales
    # One more row holds the constant down where tokens explain as much: 1 % of the weight of the measurements.
    matrix[-1, 3] = 0.01 * np.sqrt(len(seconds))
    solution, _ = nnls(matrix, np.append(seconds / seconds.mean(), 0.0))
    return solution * seconds.mean() / scales
