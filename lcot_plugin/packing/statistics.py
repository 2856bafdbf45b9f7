"""What a plan is worth: how full its packs are, how long ranks wait, whether steps see lengths in a random mix.

Comes in: a plan, the sizes it was made from, a cost model. Goes out: `PlanStatistics`. Consumed by the log at the start
of training, the report and the benchmark. Nothing here is timed: the shares follow from the cost model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lcot_plugin.packing.cost import CostModel
from lcot_plugin.types import ExampleSizes, PackLimits, PackPlan


@dataclass(frozen=True)
class PlanStatistics:
    """Of one epoch. Shares are between 0 and 1."""

    num_examples: int
    """Examples trained on; repeats in idle packs not counted."""
    num_packs: int
    """Packs of all ranks, idle ones included."""
    num_micro_steps: int
    """Micro-steps of each rank."""
    num_steps: int
    """Optimizer steps."""
    num_idle: int
    """Packs that repeat an example because a rank would have had none."""
    fill: float
    """Trained tokens / (packs x max_tokens)."""
    bubble_micro: float
    """Share of the ranks' time spent waiting when they wait for each other at every micro-step: 1 - sum of costs /
    (ranks x sum over micro-steps of the largest cost)."""
    bubble_phase: float
    """The same when they wait twice, after the vision tower and after the language model."""
    bubble_step: float
    """The same when they wait at optimizer steps only."""
    tokens_per_pack_mean: float
    patches_per_pack_mean: float
    patches_per_pack_max: int
    tokens_per_step_mean: float
    """Trained tokens of all ranks per optimizer step; mean, min and max over steps."""
    tokens_per_step_min: int
    tokens_per_step_max: int
    examples_per_pack_mean: float
    order_bias: float
    """Variance over optimizer steps of the mean log length of a step's examples, by that of steps of as many examples
    drawn at random: 1 for a random order, far above where steps see either long or short examples; nan with fewer
    than two steps or one length."""
    cap_violations: int
    """Packs over a cap; 0 in every plan of this package."""

    def summary(self) -> str:
        """A few lines for the log."""
        lines = [
            f"{self.num_examples:,} examples in {self.num_packs:,} packs: {self.num_steps:,} optimizer steps, "
            f"{self.num_micro_steps:,} micro-steps per rank",
            f"fill {self.fill:.1%}, {self.tokens_per_pack_mean:,.0f} tokens and {self.examples_per_pack_mean:.1f} "
            f"examples per pack, {self.tokens_per_step_mean:,.0f} tokens per step ({self.tokens_per_step_min:,} to "
            f"{self.tokens_per_step_max:,})",
            f"predicted waiting between ranks: {self.bubble_micro:.2%} of the time (phases apart "
            f"{self.bubble_phase:.2%}), order bias {self.order_bias:.2f}",
        ]
        if self.patches_per_pack_max:
            lines.append(f"patches per pack: {self.patches_per_pack_mean:,.0f}, at most {self.patches_per_pack_max:,}")
        if self.num_idle:
            lines.append(f"{self.num_idle} packs repeat an example with masked labels, so that every rank has work")
        return "\n".join(lines)


def pack_sums(
    plan: PackPlan, sizes: ExampleSizes, cost: CostModel
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens and patches of each pack [packs], its costs in the language model and in the vision tower
    [micro-steps, ranks]; float64."""
    pack_of = np.repeat(np.arange(plan.num_packs), np.diff(plan.offsets))
    lengths, sights = sizes.tokens[plan.indices], sizes.patches[plan.indices]

    def per_pack(values: np.ndarray) -> np.ndarray:
        return np.bincount(pack_of, weights=values, minlength=plan.num_packs)

    language = (per_pack(cost.language(lengths)) + cost.fixed).reshape(-1, plan.num_ranks)
    vision = per_pack(cost.vision(sights)).reshape(-1, plan.num_ranks)
    return per_pack(lengths), per_pack(sights), language, vision


def plan_statistics(plan: PackPlan, sizes: ExampleSizes, limits: PackLimits, cost: CostModel) -> PlanStatistics:
    """Statistics of any plan, whoever made it. An idle pack takes time, but its tokens count for nothing."""
    pack_of = np.repeat(np.arange(plan.num_packs), np.diff(plan.offsets))
    lengths = sizes.tokens[plan.indices]
    tokens, patches, language, vision = pack_sums(plan, sizes, cost)
    both = language + vision
    over = tokens > limits.max_tokens
    if limits.max_patches:
        over |= patches > limits.max_patches

    num_micro_steps = plan.num_packs // plan.num_ranks
    firsts = np.arange(0, num_micro_steps, plan.micro_steps)
    trained = np.where(plan.idle, 0, tokens)
    step_tokens = np.add.reduceat(trained.reshape(-1, plan.num_ranks).sum(axis=1), firsts)
    real = ~plan.idle[pack_of]
    return PlanStatistics(
        num_examples=int(real.sum()),
        num_packs=plan.num_packs,
        num_micro_steps=num_micro_steps,
        num_steps=len(firsts),
        num_idle=int(plan.idle.sum()),
        fill=float(trained.sum() / (plan.num_packs * limits.max_tokens)),
        bubble_micro=_waiting(both.sum(), both.max(axis=1).sum(), plan.num_ranks),
        bubble_phase=_waiting(both.sum(), language.max(axis=1).sum() + vision.max(axis=1).sum(), plan.num_ranks),
        bubble_step=_waiting(both.sum(), np.add.reduceat(both, firsts, axis=0).max(axis=1).sum(), plan.num_ranks),
        tokens_per_pack_mean=float(trained.sum() / plan.num_packs),
        patches_per_pack_mean=float(patches.mean()),
        patches_per_pack_max=int(patches.max()),
        tokens_per_step_mean=float(step_tokens.mean()),
        tokens_per_step_min=int(step_tokens.min()),
        tokens_per_step_max=int(step_tokens.max()),
        examples_per_pack_mean=float(real.sum() / plan.num_packs),
        order_bias=_order_bias(lengths[real], (pack_of // plan.num_ranks // plan.micro_steps)[real]),
        cap_violations=int(over.sum()),
    )


def _waiting(work: float, duration: float, num_ranks: int) -> float:
    return max(0.0, float(1 - work / (num_ranks * duration)))


def _order_bias(lengths: np.ndarray, steps: np.ndarray) -> float:
    """Mean over steps of n * (mean log length - that of all)**2, by the variance of log lengths.

    A mean of n examples drawn at random has the variance of one by n, so each step is multiplied by its n; steps
    differ in theirs.
    """
    counts = np.bincount(steps)
    if len(counts) < 2 or lengths.min() == lengths.max():
        return float("nan")
    logs = np.log(lengths)
    deviations = np.bincount(steps, weights=logs - logs.mean()) / np.maximum(counts, 1)
    return float((counts * deviations**2).sum() / (len(counts) - 1) / logs.var())
