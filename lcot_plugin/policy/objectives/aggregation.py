"""What a loss is averaged over, as the weight of each completion's tokens in the sum over one optimizer step.

    aggregation  weight of a token                                     of                     source
    sequence     1 / (S x T)                                           grpo, gspo, sapo       GRPO, arXiv 2402.03300
    token        1 / trained tokens of the step                        dapo, cispo            DAPO, arXiv 2503.14476
    constant     1 / (S x max_completion_length)                       dr_grpo                Dr. GRPO, arXiv 2503.20783
    micro_batch  1 / (micro-batches x trained tokens of its own)       bnpo                   BNPO in TRL

S counts the completions of the optimizer step over all ranks, T the completion's own tokens. Weights are made for the
step as a whole, so any cut into packs adds up to the same loss.

What a completion that is not trained (truncated and masked) does to the denominators: in `sequence` and `constant`, as
in TRL, a completion weighs one S-th whatever becomes of the others, so it stays in the count. `token` and
`micro_batch` are means over tokens, and only trained ones count; TRL 0.24 leaves the masked tokens in dapo's count,
which shrinks the loss (its issue #6369, mended in later releases). TRL's micro-batch without any trained token still
counts as a micro-batch, of loss 0; so it does here.

Example, lengths 3 and 2, both trained: sequence 1/6 and 1/4, token 1/5 and 1/5, constant with a limit of 10 tokens 1/20
and 1/20.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Aggregation = Literal["sequence", "token", "constant", "micro_batch"]


def token_weights(
    aggregation: Aggregation,
    lengths: Sequence[int],
    trained: Sequence[bool],
    *,
    micro_batch_size: int,
    max_completion_length: int,
) -> list[float]:
    """[S] what each token of each completion weighs; 0.0 where it is not trained.

    Args:
        aggregation: see above.
        lengths: [S] tokens of every completion of the optimizer step, over all ranks, in rollout order.
        trained: [S].
        micro_batch_size: completions of one micro-batch, consecutive ones; `micro_batch` alone asks for it.
        max_completion_length: tokens; `constant` alone asks for it.
    """
    num_completions = len(lengths)
    trained_lengths = [length if kept else 0 for length, kept in zip(lengths, trained, strict=True)]
    match aggregation:
        case "sequence":
            denominators = [num_completions * length for length in lengths]
        case "token":
            denominators = [sum(trained_lengths)] * num_completions
        case "constant":
            denominators = [num_completions * max_completion_length] * num_completions
        case "micro_batch":
            starts = range(0, num_completions, micro_batch_size)
            tokens = [sum(trained_lengths[start : start + micro_batch_size]) for start in starts]
            denominators = [len(starts) * tokens[index // micro_batch_size] for index in range(num_completions)]
    return [1.0 / by if kept and by else 0.0 for by, kept in zip(denominators, trained, strict=True)]
