"""Random completions for tests of the objectives, as ragged rows, and the same as `PolicyTerms`."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from lcot_plugin.arguments import GrpoArguments
from lcot_plugin.policy.objectives import Objective, PolicyTerms, make_objective, policy_loss

MAX_LENGTH = 12


@dataclass
class Rows:
    """S completions of n tokens in all."""

    lengths: list[int]
    trained: list[bool]
    advantages: torch.Tensor
    """[S]."""
    logps: torch.Tensor
    old_logps: torch.Tensor | None
    ref_logps: torch.Tensor
    sampler_logps: torch.Tensor
    entropies: torch.Tensor
    """[n] each."""


def random_rows(seed: int, lengths: list[int] | None = None, with_old: bool = True) -> Rows:
    """Wide enough that ratios fall below 0.8, above 1.28 and above 2; one advantage is 0."""
    generator = torch.Generator().manual_seed(seed)
    if lengths is None:
        lengths = torch.randint(1, MAX_LENGTH + 1, (6,), generator=generator).tolist()
    num_tokens = sum(lengths)

    def normal(num: int) -> torch.Tensor:
        return torch.randn(num, generator=generator)

    logps = -normal(num_tokens).abs()
    advantages = normal(len(lengths))
    advantages[-1] = 0.0
    return Rows(
        lengths=lengths,
        trained=[True] * len(lengths),
        advantages=advantages,
        logps=logps,
        old_logps=logps + 0.6 * normal(num_tokens) if with_old else None,
        ref_logps=logps + 0.4 * normal(num_tokens),
        sampler_logps=logps + 0.5 * normal(num_tokens),
        entropies=normal(num_tokens).abs(),
    )


def arguments(**keys) -> GrpoArguments:
    """The YAML keys, given without their `grpo_`."""
    return GrpoArguments(**{f"grpo_{key}": value for key, value in keys.items()})


def objective(**keys) -> Objective:
    return make_objective(arguments(**keys), MAX_LENGTH)


def packs(made: Objective, rows: Rows, cuts: tuple[int, ...] = (), micro_batch_size: int = 2) -> list[PolicyTerms]:
    """The trained completions in packs that begin at the first and at each of `cuts`; leaves that take gradients."""
    weights = made.token_weights(rows.lengths, rows.trained, micro_batch_size)
    ends = torch.tensor([0, *rows.lengths]).cumsum(0).tolist()
    bounds = [0, *cuts, len(rows.lengths)]
    result = []
    for first, last in pairwise(bounds):
        kept = [index for index in range(first, last) if rows.trained[index]]
        tokens = torch.tensor([t for index in kept for t in range(ends[index], ends[index + 1])], dtype=torch.long)
        lengths = torch.tensor([rows.lengths[index] for index in kept], dtype=torch.long)
        result.append(
            PolicyTerms(
                logps=rows.logps[tokens].requires_grad_(),
                old_logps=None if rows.old_logps is None else rows.old_logps[tokens],
                ref_logps=rows.ref_logps[tokens],
                sampler_logps=rows.sampler_logps[tokens],
                entropies=rows.entropies[tokens].requires_grad_(made.entropy_gradient),
                advantages=rows.advantages[kept].repeat_interleave(lengths),
                weights=torch.tensor([weights[index] for index in kept]).repeat_interleave(lengths),
                lengths=lengths,
            )
        )
    return result


def terms_of(made: Objective, rows: Rows, **changes) -> PolicyTerms:
    """All trained completions as one pack."""
    return replace(packs(made, rows)[0], **changes)


def value_and_gradients(made: Objective, terms: PolicyTerms, **kwargs) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Loss, its gradient [n] with respect to the log-probabilities, statistics."""
    loss, statistics = policy_loss(made, terms, **kwargs)
    loss.backward()
    return loss.detach(), terms.logps.grad, statistics
