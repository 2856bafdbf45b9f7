"""The YAML keys of `stage: grpo`, with their meanings, and the arithmetic of its batches.

In: what the user wrote. Out: `GrpoArguments` (part of LLaMA-Factory's FinetuningArguments), `BatchPlan`. Names follow
LLaMA-Factory (flat, lower case), meanings follow TRL's GRPOConfig.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lcot_plugin.errors import ArgumentError
from lcot_plugin.rewards.functions.specs import split_items

# A copy of LLaMA-Factory's chat defaults would narrow the exploration that RL lives on (top_p 0.7, top_k 50).
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
"""What `temperature`, `top_p` and `top_k` are in stage grpo where the user does not write them."""


def _key(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


# LLaMA-Factory parses with HfArgumentParser, which reads these annotations at run time: `X | None`, Literal, str, int,
# float, bool only.
@dataclass
class GrpoArguments:
    """Arguments of the GRPO stage (`stage: grpo`), arXiv 2402.03300."""

    grpo_num_generations: int = _key(8, "Completions sampled per prompt (the group size G); at least 2 to train.")
    grpo_num_iterations: int = _key(1, "Times each batch of completions is trained on (mu in the paper).")
    grpo_steps_per_generation: int | None = _key(
        None,
        "Micro-steps served by one batch of completions; a multiple of gradient_accumulation_steps, which is also the "
        "default: one optimizer step per batch and iteration.",
    )
    grpo_beta: float = _key(
        0.0, "Weight of the KL divergence to the reference policy (k3 estimate). 0 needs no reference."
    )
    grpo_epsilon: float = _key(0.2, "Importance ratios below 1 - epsilon are clipped.")
    grpo_epsilon_high: float | None = _key(
        None, "Ratios above 1 + epsilon_high are clipped; default: grpo_epsilon. DAPO's clip-higher uses 0.28."
    )
    grpo_delta: float | None = _key(
        None, "Upper bound of the ratio where the advantage is negative (two-sided clipping); above 1 + epsilon_high."
    )
    grpo_loss_type: Literal["grpo", "dr_grpo", "dapo"] = _key(
        "dapo",
        "Normalisation of the loss: `grpo` means over tokens, then sequences; `dr_grpo` divides by the constant "
        "max_new_tokens; `dapo` means over all tokens of the optimizer step.",
    )
    grpo_importance_sampling_level: Literal["token", "sequence"] = _key(
        "token", "Importance ratio per `token`, or per `sequence` (GSPO)."
    )
    grpo_scale_rewards: Literal["group", "batch", "none"] = _key(
        "group", "Divide advantages by the standard deviation of their group, of the batch, or not (Dr. GRPO)."
    )
    grpo_mask_truncated: bool = _key(
        False, "Leave completions that reached max_new_tokens out of the loss (their rewards still count in the group)."
    )
    grpo_top_entropy_quantile: float = _key(
        1.0, "Share of the tokens, those of highest entropy, that the policy term trains on (arXiv 2506.01939)."
    )
    grpo_reward_funcs: str = _key(
        "accuracy",
        "Reward functions, comma-separated or a YAML list: names (see `lcot reward list`) with their parameters, "
        "`cosine_length(min_correct=0.5)`, `trl:think_format_reward`, or a function of yours as "
        "`path/to/file.py:function`; `iou@boxes` judges only records whose answers are boxes.",
    )
    grpo_reward_weights: str | None = _key(
        None, "Weights, comma-separated or a YAML list, one per reward function; default: 1 for each."
    )
    grpo_reward_errors: Literal["stop", "skip"] = _key(
        "stop",
        "Where a reward function raises or returns no number: `stop` ends the run and names the record, `skip` goes on "
        "without its value there and counts it as reward_errors/NAME.",
    )
    grpo_reward_deadline: float = _key(5.0, "Seconds after which the verification of one answer is killed.")
    grpo_rollout_engine: Literal["transformers"] = _key(
        "transformers", "What writes the completions: `transformers` runs the training model in process."
    )
    grpo_rollout_batch_size: int | None = _key(
        None, "Completions decoded at once per process; lower it when rollouts run out of memory. Default: all."
    )
    grpo_logits_chunk_size: int = _key(
        512, "Tokens whose logits exist at once in the policy update; lower it when the update runs out of memory."
    )
    grpo_eval_generations: int = _key(
        8, "Sampled completions per problem in evaluation, for avg@k and pass@k, beside the greedy one; 0: greedy only."
    )
    grpo_log_completions: bool = _key(
        True, "Write every completion with its verdict, rewards and advantage to completions.jsonl in output_dir."
    )

    def reward_functions(self) -> list[str]:
        """Names or `file.py:function`, in the order of the weights."""
        return [name for name in split_items(self.grpo_reward_funcs) if name]

    def reward_weights(self) -> list[float] | None:
        """One weight per function, or None. Raises ArgumentError where a weight is not a number."""
        if self.grpo_reward_weights is None:
            return None
        try:
            return [float(weight) for weight in split_items(self.grpo_reward_weights)]
        except ValueError:
            raise ArgumentError(
                f"grpo_reward_weights: '{self.grpo_reward_weights}' is not a list of numbers: write for example "
                "`grpo_reward_weights: 1.0,0.2`."
            ) from None

    def check_grpo(self, training: bool = True) -> None:
        """Raises ArgumentError for values that cannot work; `training` is False where the stage only evaluates."""
        for key, annotation in get_type_hints(GrpoArguments).items():
            # LLaMA-Factory checks choices on a command line, but not those of a YAML file.
            if get_origin(annotation) is Literal and getattr(self, key) not in get_args(annotation):
                raise ArgumentError(f"{key}: {getattr(self, key)!r} must be one of {', '.join(get_args(annotation))}.")
        if training and self.grpo_num_generations < 2:
            raise ArgumentError(
                f"grpo_num_generations: {self.grpo_num_generations} leaves every advantage at 0, since a completion is "
                "compared with the others of its group: write 2 or more (8 is usual)."
            )
        for key in ("grpo_num_iterations", "grpo_logits_chunk_size"):
            if getattr(self, key) < 1:
                raise ArgumentError(f"{key}: {getattr(self, key)} must be at least 1.")
        for key in ("grpo_beta", "grpo_eval_generations"):
            if getattr(self, key) < 0:
                raise ArgumentError(f"{key}: {getattr(self, key)} must not be negative.")
        for key in ("grpo_steps_per_generation", "grpo_rollout_batch_size"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ArgumentError(f"{key}: {getattr(self, key)} must be at least 1, or left out.")
        if self.grpo_reward_deadline <= 0:
            raise ArgumentError(f"grpo_reward_deadline: {self.grpo_reward_deadline} must be more than 0 seconds.")
        if not 0.0 < self.grpo_epsilon < 1.0:
            raise ArgumentError(f"grpo_epsilon: {self.grpo_epsilon} must lie between 0 and 1 (0.2 is usual).")
        high = self.grpo_epsilon if self.grpo_epsilon_high is None else self.grpo_epsilon_high
        if high <= 0:
            raise ArgumentError(f"grpo_epsilon_high: {high} must be more than 0 (0.28 in DAPO), or left out.")
        if self.grpo_delta is not None and self.grpo_delta <= 1 + high:
            raise ArgumentError(
                f"grpo_delta: {self.grpo_delta} must exceed 1 + epsilon_high = {1 + high}, or the clipping above it "
                "never acts."
            )
        if not 0.0 < self.grpo_top_entropy_quantile <= 1.0:
            raise ArgumentError(
                f"grpo_top_entropy_quantile: {self.grpo_top_entropy_quantile} must lie in (0, 1]: 0.2 trains on the "
                "fifth of the tokens with the highest entropy."
            )
        functions, weights = self.reward_functions(), self.reward_weights()
        if not functions:
            raise ArgumentError("grpo_reward_funcs is empty: write for example `grpo_reward_funcs: accuracy`.")
        if weights is not None and len(weights) != len(functions):
            raise ArgumentError(
                f"grpo_reward_weights has {len(weights)} weights for the {len(functions)} functions of "
                f"grpo_reward_funcs ({', '.join(functions)}): write one weight per function."
            )


GRPO_KEYS = tuple(item.name for item in fields(GrpoArguments))


@dataclass(frozen=True)
class BatchPlan:
    """How many prompts and completions meet in one rollout, and how they are cut into micro-steps.

    Example: 4 completions per device, 4 accumulation steps, 2 processes, groups of 8: an optimizer step trains on
    4 x 4 x 2 = 32 completions of 4 prompts, 2 prompts on each process.
    """

    completions_per_micro_step: int
    """per_device_train_batch_size: it counts completions, as in TRL."""
    steps_per_generation: int
    """Micro-steps that one rollout serves per iteration."""
    num_iterations: int
    num_generations: int
    world_size: int

    @property
    def prompts_per_rank(self) -> int:
        return self.completions_per_micro_step * self.steps_per_generation // self.num_generations

    @property
    def prompts_per_rollout(self) -> int:
        """Over all processes."""
        return self.prompts_per_rank * self.world_size

    @property
    def micro_steps_per_rollout(self) -> int:
        return self.steps_per_generation * self.num_iterations


def plan_batches(
    arguments: GrpoArguments, per_device_batch_size: int, gradient_accumulation_steps: int, world_size: int
) -> BatchPlan:
    """Raises ArgumentError where the group size does not divide the batch, with the nearest settings that work."""
    steps = arguments.grpo_steps_per_generation or gradient_accumulation_steps
    if steps % gradient_accumulation_steps:
        raise ArgumentError(
            f"grpo_steps_per_generation: {steps} must be a multiple of gradient_accumulation_steps "
            f"({gradient_accumulation_steps}): an optimizer step cannot straddle two rollouts."
        )
    completions, group = per_device_batch_size * steps, arguments.grpo_num_generations
    if completions % group:
        key, unit = "gradient_accumulation_steps", 1
        if arguments.grpo_steps_per_generation:
            key, unit = "grpo_steps_per_generation", gradient_accumulation_steps
        enough = next(n for n in range(steps, steps + group * unit + 1, unit) if per_device_batch_size * n % group == 0)
        divisors = [n for n in range(2, completions + 1) if completions % n == 0]
        groups = f", or grpo_num_generations one of {', '.join(map(str, divisors))}" if divisors else ""
        raise ArgumentError(
            f"Batch not divisible: per_device_train_batch_size ({per_device_batch_size}, it counts completions) x "
            f"{key} ({steps}) = {completions} completions per process, which is not a multiple of "
            f"grpo_num_generations ({group}). Write {key}: {enough}{groups}."
        )
    return BatchPlan(per_device_batch_size, steps, arguments.grpo_num_iterations, group, world_size)
