"""The two sides of grpo_update.py: what an optimizer step is made of, and how this plugin and TRL compute it.

In: a Case, the folder of a model, and where it is computed. Out: seconds, memory and differences, as a dictionary. Used
by gpu/grpo.py too. On the CPU, Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import Any

SIGMA = math.log(3) / NormalDist().inv_cdf(0.95)
"""Of the logarithm of the lengths: the 95th percentile is three times the median."""
TEXT_BEFORE, TEXT_AFTER = 20, 60
"""Text tokens of the prompt before and after its image."""
PATCHES_PER_TOKEN = 4


@dataclass(frozen=True)
class Placement:
    """Where and how both sides compute."""

    device: str = "cpu"
    dtype: str = "float32"
    checkpointing: bool = False
    """Whether layers are recomputed in the backward pass instead of kept."""
    optimizer_steps: int = 0
    """Timed steps of AdamW after the last pass; the first one, which makes its states, goes before them."""


@dataclass(frozen=True)
class Case:
    """One optimizer step, and how often it is computed."""

    shape: str = "speed"
    image_tokens: int = 256
    """A square number; 0 for a prompt without an image."""
    prompts: int = 1
    """Groups of the step: we compute one pack per group; TRL pads all of them to the longest completion of all."""
    generations: int = 8
    median: int = 250
    sigma: float = SIGMA
    repeats: int = 3
    """Timed passes."""
    theirs: int = 3
    """Timed passes of TRL's side, which may take minutes."""
    micro_batches: tuple[int, ...] = (8,)
    """per_device_train_batch_size of TRL's side, one arm each."""
    exact: bool = False
    """Whether ours is compared with plain passes."""

    def lengths(self) -> list[list[int]]:
        """Tokens of the completions of every prompt: quantiles dealt out in turn, so that all groups are alike."""
        number = self.prompts * self.generations
        deviations = [NormalDist().inv_cdf((index + 0.5) / number) for index in range(number)]
        lengths = [max(2, round(self.median * math.exp(self.sigma * one))) for one in deviations]
        return [lengths[prompt :: self.prompts] for prompt in range(self.prompts)]

    def warm_up(self) -> Case:
        return replace(self, median=max(8, self.median // 8))


@dataclass(frozen=True)
class Group:
    """What both sides are given."""

    prompt_ids: list[int]
    completions: list[list[int]]
    media: dict[str, Any]
    """pixel_values and image_grid_thw of the prompt's image; empty without."""
    rewards: list[float]


def groups_of(case: Case, config: Any, first_id: int) -> list[Group]:
    """Random tokens from `first_id` on, random pixels; every second completion is rewarded."""
    import torch

    generator = torch.Generator().manual_seed(0)
    vocabulary = config.get_text_config().vocab_size

    def text(length: int) -> list[int]:
        return torch.randint(first_id, vocabulary, (length,), generator=generator).tolist()

    def group(lengths: list[int]) -> Group:
        image: list[int] = []
        media = {}
        if case.image_tokens:
            side = 2 * math.isqrt(case.image_tokens)
            placeholders = [config.image_token_id] * case.image_tokens
            image = [config.vision_start_token_id, *placeholders, config.vision_end_token_id]
            pixels = torch.randn(PATCHES_PER_TOKEN * case.image_tokens, values_of_patch(config), generator=generator)
            media = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}
        prompt = text(TEXT_BEFORE) + image + text(TEXT_AFTER)
        completions = [text(length) for length in lengths]
        return Group(prompt, completions, media, [float(index % 2) for index in range(len(completions))])

    return [group(lengths) for lengths in case.lengths()]


def values_of_patch(config: Any) -> int:
    """3 channels, 2 frames, 14 x 14 or 16 x 16 pixels."""
    return 3 * config.vision_config.temporal_patch_size * config.vision_config.patch_size**2


class PeakMemory(threading.Thread):
    """Samples this process; `peak` is in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    """Memory that this process has allocated and touched; weights that are mapped from a file do not count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def load(folder: Path, placement: Placement = Placement()) -> tuple[Any, Any]:
    """The model, its vision tower frozen, and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, placement.dtype), attn_implementation="sdpa"
    )
    model.to(placement.device)
    for name, parameter in model.named_parameters():
        if placement.device == "cpu":
            # Copied, so that the weights are memory that counts as the loaded model's, not pages read in later.
            parameter.data = parameter.data.clone()
        parameter.requires_grad_("visual" not in name)
    if placement.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train(), AutoProcessor.from_pretrained(folder)


def timed(
    model: Any,
    repeats: int,
    warm_up: Callable[[], float],
    update: Callable[[], float],
    placement: Placement = Placement(),
) -> dict[str, Any]:
    """Seconds, memory and loss of `update`, which leaves the gradients of the last pass in the model.

    Of a GPU `peak` is what torch's tensors took beyond the model, `allocated` and `reserved` what they and torch's
    allocator took altogether.
    """
    import torch

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what an earlier case of this process has freed
    on_gpu = placement.device != "cpu"
    baseline = torch.cuda.memory_allocated() if on_gpu else anonymous_bytes()
    memory = PeakMemory()
    if not on_gpu:
        memory.start()
    warm_up()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds, processor_seconds = [], []
    for _ in range(repeats):
        model.zero_grad(set_to_none=True)
        started, processor_started = time.perf_counter(), time.process_time()
        loss = update()
        wait_for(placement)
        seconds.append(time.perf_counter() - started)
        processor_seconds.append(time.process_time() - processor_started)
    figures = {"seconds": seconds, "processor_seconds": processor_seconds, "baseline": baseline, "loss": loss}
    if on_gpu:
        figures |= {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        figures["peak"] = figures["allocated"] - baseline
    else:
        memory.done.set()
        memory.join()
        figures["peak"] = memory.peak - baseline
    if placement.optimizer_steps:
        figures["optimizer_seconds"] = optimizer_seconds(model, placement)
    return figures


def wait_for(placement: Placement) -> None:
    """Until a GPU has done what it was told."""
    import torch

    if placement.device != "cpu":
        torch.cuda.synchronize()


def optimizer_seconds(model: Any, placement: Placement) -> list[float]:
    """Of AdamW's steps over the gradients that are there."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=placement.device != "cpu")
    seconds = []
    for _ in range(1 + placement.optimizer_steps):
        wait_for(placement)
        started = time.perf_counter()
        optimizer.step()
        wait_for(placement)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def run_ours(folder: Path, case: Case, placement: Placement = Placement()) -> dict[str, Any]:
    import torch

    from lcot_plugin.arguments import GrpoArguments
    from lcot_plugin.packing.attention import segment_attention
    from lcot_plugin.packing.groups import pack_groups
    from lcot_plugin.policy.head import packed_log_probs
    from lcot_plugin.policy.objectives import PolicyTerms, make_objective, policy_loss
    from lcot_plugin.types import PackGroup
    from lcot_plugin.vlm import VisionLanguageModel

    model, processor = load(folder, placement)
    device = torch.device(placement.device)
    vlm = VisionLanguageModel(model, processor.tokenizer)
    banned = placeholders(vlm, processor.tokenizer).to(device)
    arguments = GrpoArguments()
    objective = make_objective(arguments, max_completion_length=max(map(max, case.lengths())))
    log_probs: list[torch.Tensor] = []

    def update(groups: list[Group]) -> float:
        log_probs.clear()
        lengths = [len(completion) for group in groups for completion in group.completions]
        weights = iter(objective.token_weights(lengths, [True] * len(lengths), len(lengths)))
        return sum(update_group(group, list(islice(weights, len(group.completions)))) for group in groups)

    def update_group(group: Group, weights: list[float]) -> float:
        batch = pack_groups([PackGroup(group.prompt_ids, group.completions, group.media)], vlm).to(device)
        lengths = [len(completion) for completion in group.completions]
        repeats = torch.tensor(lengths)
        spread = {
            "advantages": advantages(group.rewards).repeat_interleave(repeats).to(device),
            "weights": torch.tensor(weights).repeat_interleave(repeats).to(device),
            "lengths": lengths,
        }
        # As the trainer: on policy the gradient by the log-probabilities is known before they are.
        zeros = torch.zeros(sum(lengths), requires_grad=True, device=device)
        [known] = torch.autograd.grad(policy_loss(objective, PolicyTerms(zeros, **spread))[0], zeros)
        with segment_attention(model, batch.segments):
            logps, entropies = packed_log_probs(
                model,
                model,
                batch,
                banned=banned,
                temperature=1.0,
                chunk_size=arguments.grpo_logits_chunk_size,
                known_gradients=known if objective.is_linear_on_policy else None,
            )
            loss, _ = policy_loss(objective, PolicyTerms(logps, **spread, entropies=entropies))
            loss.backward()
        log_probs.append(logps.detach())
        return float(loss.detach())

    groups, warm = (groups_of(one, model.config, len(processor.tokenizer)) for one in (case, case.warm_up()))
    figures = timed(model, case.repeats, lambda: update(warm), lambda: update(groups), placement)
    return {**figures, **(compare(model, vlm, banned, groups, torch.cat(log_probs)) if case.exact else {})}


def placeholders(vlm: Any, tokenizer: Any) -> Any:
    """Placeholder tokens only: ids without a text are left in, since completions here are drawn from them."""
    import torch

    return torch.tensor([token_id for token_id in vlm.banned_token_ids if token_id < len(tokenizer)])


def advantages(rewards: list[float]) -> Any:
    """As TRL computes them."""
    import torch

    values = torch.tensor(rewards)
    return (values - values.mean()) / (values.std() + 1e-4)


def plain_log_probs(model: Any, vlm: Any, banned: Any, group: Group, completion: list[int]) -> Any:
    """[T] log-probabilities by the model's own forward pass over one prompt and one completion."""
    import torch

    row = torch.tensor([group.prompt_ids + completion])
    logits = model(input_ids=row, **group.media, **vlm.token_type_arguments(row), use_cache=False).logits
    log_probs = logits[0, len(group.prompt_ids) - 1 : -1].index_fill(-1, banned, -torch.inf).log_softmax(-1)
    return log_probs.gather(-1, torch.tensor(completion)[:, None])[:, 0]


def compare(model: Any, vlm: Any, banned: Any, groups: list[Group], log_probs: Any) -> dict[str, float]:
    """Largest difference of the log-probabilities, and relative difference of all gradients, from plain passes."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = [parameter.grad for parameter in trained]
    model.zero_grad(set_to_none=True)
    plain = []
    for group in groups:
        for completion, advantage in zip(group.completions, advantages(group.rewards), strict=True):
            found = plain_log_probs(model, vlm, banned, group, completion)
            # On policy DAPO's gradient is that of advantage * log-probability, averaged over all tokens.
            (-advantage * found.sum() / len(log_probs)).backward()
            plain.append(found.detach())
    square = sum(float((left - right.grad).square().sum()) for left, right in zip(ours, trained, strict=True))
    norm = sum(float(parameter.grad.square().sum()) for parameter in trained)
    return {
        "max_abs_difference": float((log_probs - torch.cat(plain)).abs().max()),
        "gradient_difference": math.sqrt(square / norm),
    }


def run_trl(folder: Path, case: Case, micro_batch: int, placement: Placement = Placement()) -> dict[str, Any]:
    import llamafactory.train.tuner  # noqa: F401  (on transformers >= 5.3, trl imports only after it)
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from lcot_plugin.vlm import VisionLanguageModel

    model, processor = load(folder, placement)
    if not hasattr(model, "warnings_issued"):
        model.warnings_issued = {}  # gone since transformers 5.1; TRL 0.24 writes to it
    captured: list[tuple[torch.Tensor, torch.Tensor]] = []
    vlm = VisionLanguageModel(model, processor.tokenizer)

    def with_token_types(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, {**vlm.token_type_arguments(kwargs["input_ids"]), **kwargs}

    if model.config.model_type == "qwen3_vl":
        # Transformers 5 wants to be told where pictures are, and TRL 0.24 drops what the processor says of it. Without
        # it Qwen3-VL refuses; Qwen2.5-VL takes their tokens for text, and is left to TRL as it is.
        model.register_forward_pre_hook(with_token_types, with_kwargs=True)

    class GivenCompletions(GRPOTrainer):
        """Everything but the sampling is TRL's."""

        groups: list[Group]

        def _generate_single_turn(self, prompts: list[Any], images: Any) -> tuple[Any, ...]:
            rows = [(group, completion) for group in self.groups for completion in group.completions]
            assert len(prompts) == len(rows)
            # One image per completion: what its processor makes of as many conversations.
            media = {key: torch.cat([group.media[key] for group, _ in rows]) for key in self.groups[0].media}
            media = {key: tensor.to(placement.device) for key, tensor in media.items()}
            return [group.prompt_ids for group, _ in rows], [completion for _, completion in rows], None, media

        def _get_per_token_logps_and_entropies(self, model: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            log_probs, entropies = super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)
            captured.append((input_ids, log_probs.detach()))
            return log_probs, entropies

    steps = case.prompts * case.generations // micro_batch
    trainer = GivenCompletions(
        model=model,
        reward_funcs=lambda completions, **_: [reward for group in trainer.groups for reward in group.rewards],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=steps,
            num_generations=case.generations,
            temperature=1.0,
            beta=0.0,
            loss_type="dapo",
            bf16=False,
            gradient_checkpointing=False,  # `load` has set it
            use_cpu=placement.device == "cpu",
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["?"]}),
        processing_class=processor,
    )
    trainer.current_gradient_accumulation_steps = steps

    def prepared(groups: list[Group]) -> list[dict[str, Any]]:
        """The micro-batches of one optimizer step."""
        trainer.groups, trainer._step = groups, 0
        examples = [
            {"prompt": "?", **({"images": [None]} if group.media else {})}
            for group in groups
            for _ in group.completions
        ]
        return [trainer._prepare_inputs(examples) for _ in range(steps)]

    def update(batches: list[dict[str, Any]]) -> float:
        captured.clear()
        total = 0.0
        for inputs in batches:
            loss = trainer.compute_loss(model, inputs)
            trainer.accelerator.backward(loss)
            total += float(loss.detach())
        return total

    groups, warm = (groups_of(one, model.config, len(processor.tokenizer)) for one in (case, case.warm_up()))
    warm_batches = prepared(warm)
    batches = prepared(groups)
    figures = timed(model, case.theirs, lambda: update(warm_batches), lambda: update(batches), placement)
    if case.exact and micro_batch == case.micro_batches[-1]:
        nothing = torch.tensor([], dtype=torch.int64)  # TRL excludes no token
        largest = 0.0
        rows = {tuple(row.tolist()): found for ids, logps in captured for row, found in zip(ids, logps, strict=True)}
        with torch.no_grad():
            for group in groups:
                for completion in group.completions:
                    start = (*group.prompt_ids, *completion)
                    found = next(logps for ids, logps in rows.items() if ids[: len(start)] == start)
                    plain = plain_log_probs(model, vlm, nothing, group, completion)
                    largest = max(largest, float((found[: len(completion)] - plain).abs().max()))
        figures["max_abs_difference"] = largest
    return figures
