"""LLDS: the likelihood of completions that were not bad is held (arXiv 2512.04220).

GRPO lowers the likelihood of good completions too, by what bad ones of the same group share with them; where this goes
on, confidence falls, gradients grow, and training collapses. The term acts on a completion whose advantage is not
negative and whose log-likelihood as a whole fell below that of the old policy, and there on the tokens that fell.
On policy nothing has fallen yet: it needs several updates per rollout.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.objectives.terms import PolicyTerms


def llds_terms(terms: PolicyTerms) -> torch.Tensor:
    """[n] nats: max(0, old logp - logp) where sum over the completion of (old logp - logp) > 0 and A >= 0, else 0."""
    fall = terms.old - terms.logps
    fell_as_a_whole = terms.per_token(terms.sequence_sums(fall.detach())) > 0
    return fall.relu() * (fell_as_a_whole & (terms.advantages >= 0))
