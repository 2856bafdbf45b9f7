"""What is reported of a pack: sums with their counts (`x_sum` goes with `x_count`) and maxima (`x_max`).

So that packs and ranks can be merged by `MetricSums.add_statistics`. Counts are the host's own, so that nobody waits
for the device.
"""

from __future__ import annotations

import torch

from lcot_plugin.policy.objectives.ratio import SurrogateSettings, importance_ratio
from lcot_plugin.policy.objectives.registry import LossType
from lcot_plugin.policy.objectives.terms import PolicyTerms
from lcot_plugin.policy.sampler_correction import SamplerCorrection

Statistics = dict[str, torch.Tensor | int]


@torch.no_grad()
def loss_statistics(
    loss_type: LossType,
    settings: SurrogateSettings,
    terms: PolicyTerms,
    kl: torch.Tensor | None,
    llds: torch.Tensor | None,
    correction: SamplerCorrection | None,
) -> Statistics:
    """The statistics of a pack of at least one token.

    `ratio` with its mean, maximum and, as `inverse_ratio_max`, one over its minimum; the shares of `clip_low`,
    `clip_high` and `clip_region`, where the objective clips; `kl` and `llds` in nats per token; `entropy`; of the
    sampler correction the uncapped `sampler_weight` and the share `sampler_weight_capped`.
    """
    level = settings.importance_sampling_level
    ratio = importance_ratio(terms, level)
    quantities = {"ratio": ratio}
    if loss_type.clipped is not None:
        quantities |= loss_type.clipped(ratio, terms.advantages, settings)
    if level == "sequence":
        # A sequence has one ratio, however many tokens repeat it.
        quantities = {name: terms.sequence_means(values.float()) for name, values in quantities.items()}
    maxima = {"ratio": ratio, "inverse_ratio": 1 / ratio}
    if correction is not None:
        quantities |= {"sampler_weight": correction.uncapped, "sampler_weight_capped": correction.over_cap}
        maxima["sampler_weight"] = correction.uncapped
    for name, values in {"kl": kl, "llds": llds, "entropy": terms.entropies}.items():
        if values is not None:
            quantities[name] = values

    statistics: Statistics = {f"{name}_max": values.max() for name, values in maxima.items()}
    for name, values in quantities.items():
        statistics[f"{name}_sum"] = values.detach().float().sum()
        statistics[f"{name}_count"] = values.numel()
    return statistics
