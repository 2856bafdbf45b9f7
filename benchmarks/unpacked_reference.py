"""The losses of a packed run beside those of the same examples trained one by one, and beside a wrong normalisation.

In: a recipe with `length_aware_packing`. Out: three loss curves over the same examples per optimizer step. For
sft_throughput.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from llamafactory.train.tuner import run_exp

from lcot_plugin.integration import packing_trainer
from lcot_plugin.integration.packing_trainer import PackingTrainer
from lcot_plugin.packing.throughput import PackCount
from lcot_plugin.packing.trainer import PackingTrainerMixin


def compare_losses(recipe: dict[str, Any], make_watch: Callable[[], Any]) -> dict[str, Any]:
    """The losses of three runs over the same examples per step: packed, one by one, one by one and wrongly weighed.

    `make_watch`: a new callback whose `steps` hold tokens, labels and losses of every optimizer step.
    """
    trainers = {"packed": PackingTrainer, "unpacked": unpacked_trainer(), "per_example": unpacked_trainer(True)}
    runs = {}
    for kind, trainer in trainers.items():
        packing_trainer.PackingTrainer = trainer
        watch = make_watch()
        run_exp(dict(recipe), callbacks=[watch])
        runs[kind] = watch.steps
    assert runs["packed"].tokens == runs["unpacked"].tokens and runs["packed"].labels == runs["unpacked"].labels
    return {kind: steps.losses for kind, steps in runs.items()}


def unpacked_trainer(mean_per_example: bool = False) -> type:
    """The packing trainer's examples and steps, but each example by itself through transformers' own forward pass:
    its positions, its attention, full logits, torch's cross-entropy.

    `mean_per_example` weighs as LLaMA-Factory does when each example is a micro-batch: the mean of their means.
    """

    class Unpacked(PackingTrainer):
        def setup_packing(self, parts: Any) -> None:
            def collate(batch: list[Any]) -> dict[str, Any]:
                return {**parts.collate(batch), "examples": [parts.collate.example(row) for row in batch[0].rows]}

            self.vlm = parts.collate.vlm
            super().setup_packing(dataclasses.replace(parts, collate=collate))

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, total = super().get_batch_samples(*args, **kwargs)
            return batches, sum(len(batch["examples"]) for batch in batches) if mean_per_example else total

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super(PackingTrainerMixin, self).training_step(*args, **kwargs)  # without segment attention

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None):
            self.throughput.counts.append(PackCount.of(inputs["packed"]))
            total = torch.zeros(())
            for example in inputs["examples"]:
                ids, labels = torch.tensor([example.input_ids]), torch.tensor(example.labels)
                arguments = {**example.media, **self.vlm.token_type_arguments(ids), "use_cache": False}
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments).logits[0, :-1]
                reduction = "mean" if mean_per_example else "sum"
                total = total + torch.nn.functional.cross_entropy(logits, labels[1:], reduction=reduction)
            return total / num_items_in_batch

    return Unpacked
