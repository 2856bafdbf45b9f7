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
    grpo_beta: float = _key(0.0, "Weight of the KL divergence to the reference policy. 0 needs no reference.")
    grpo_kl_estimator: Literal["k1", "k2", "k3"] = _key(
        "k3", "How the KL divergence is estimated per token (Schulman): `k1` log-ratio, `k2` half its square, `k3`."
    )
    grpo_kl_in: Literal["loss", "reward"] = _key(
        "loss", "Whether the KL divergence is a term of the `loss`, or taken off the `reward` before advantages."
    )
    grpo_ref_sync_steps: int | None = _key(
        None, "Optimizer steps after which the reference policy is moved to the policy; default: it stays as it began."
    )
    grpo_ref_mixup_alpha: float = _key(
        1.0, "Share of the policy in the reference when it is moved: 1 replaces it, 0.6 keeps 0.4 of the old reference."
    )
    grpo_epsilon: float = _key(0.2, "Importance ratios below 1 - epsilon are clipped.")
    grpo_epsilon_high: float | None = _key(
        None, "Ratios above 1 + epsilon_high are clipped; default: grpo_epsilon. DAPO's clip-higher uses 0.28."
    )
    grpo_delta: float | None = _key(
        None, "Upper bound of the ratio where the advantage is negative (two-sided clipping); above 1 + epsilon_high."
    )
    grpo_loss_type: str = _key(
        "dapo",
        "The objective: grpo, bnpo, dr_grpo, dapo, gspo, cispo, sapo, or a function of yours as "
        "`path/to/file.py:function` (docs/grpo.md).",
    )
    grpo_loss_aggregation: Literal["sequence", "micro_batch", "constant", "token"] | None = _key(
        None,
        "What the loss is averaged over, where it should not be the objective's own: `sequence` means over the tokens "
        "of each completion, then over completions (grpo); `token` over all tokens of the optimizer step (dapo); "
        "`micro_batch` over the tokens of each per_device_train_batch_size completions (bnpo); `constant` sums and "
        "divides by max_new_tokens (dr_grpo).",
    )
    grpo_importance_sampling_level: Literal["token", "sequence"] | None = _key(
        None, "Importance ratio per `token` or per `sequence`; default: the objective's own (gspo: sequence)."
    )
    grpo_sapo_temperature_pos: float = _key(1.0, "Temperature of sapo's gate where the advantage is positive.")
    grpo_sapo_temperature_neg: float = _key(1.05, "Temperature of sapo's gate where the advantage is negative.")
    grpo_llds_coef: float = _key(
        0.0, "Weight of LLDS, which holds the likelihood of completions that were not bad (arXiv 2512.04220)."
    )
    grpo_entropy_coef: float = _key(0.0, "Weight of the entropy bonus (subtracted from the loss).")
    grpo_sampler_correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        _key(
            "none",
            "Importance weights for the gap between sampler and trainer, per `token` or `sequence`: `truncate` bounds "
            "them by grpo_sampler_correction_cap (truncated importance sampling), `mask` leaves out what exceeds it.",
        )
    )
    grpo_sampler_correction_cap: float = _key(2.0, "The largest such weight.")
    grpo_advantage: str = _key(
        "group",
        "Advantage of a completion: `group` (GRPO: minus the group's mean, scaled as grpo_scale_rewards says), `rloo` "
        "(minus the mean of the others), `reinforce_pp` (REINFORCE++: normalised over the batch), "
        "`reinforce_pp_baseline` (minus the group's mean, normalised over the batch), or `path/to/file.py:function`.",
    )
    grpo_scale_rewards: Literal["group", "batch", "none"] = _key(
        "group", "Divide advantages by the standard deviation of their group, of the batch, or not (Dr. GRPO)."
    )
    grpo_multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = _key(
        "sum_then_normalize",
        "With several rewards: advantages of their weighted sum, or weighted sum of each reward's own advantages, "
        "normalised over the batch (GDPO, arXiv 2601.05242).",
    )
    grpo_mask_truncated: bool = _key(
        False, "Leave completions that reached max_new_tokens out of the loss (their rewards still count in the group)."
    )
    grpo_top_entropy_quantile: float = _key(
        1.0, "Share of the tokens, those of highest entropy, that the policy term trains on (arXiv 2506.01939)."
    )
    grpo_dynamic_sampling: bool = _key(
        False, "Replace groups whose rewards do not differ by those of other prompts (DAPO, arXiv 2503.14476)."
    )
    grpo_dynamic_sampling_rounds: int = _key(
        3, "Further rollouts at most for that; groups still without variance then stay, and are counted."
    )
    grpo_replay_groups: int = _key(
        0,
        "Informative groups that are kept, over all processes, to stand in for groups whose rewards do not differ "
        "(selective sample replay, arXiv 2504.08837); 0: no replay.",
    )
    grpo_min_pass_rate: float | None = _key(
        None, "Leave out prompts with a lower pass rate; needs the columns that `lcot data difficulty` writes."
    )
    grpo_max_pass_rate: float | None = _key(None, "Leave out prompts with a higher pass rate.")
    grpo_curriculum: Literal["none", "easy_first"] = _key(
        "none", "Order of an epoch: shuffled, or by falling pass rate with some shuffling (`easy_first`)."
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
        "without its value there and logs the share of completions as reward_errors/NAME.",
    )
    grpo_reward_deadline: float = _key(5.0, "Seconds after which the verification of one answer is killed.")
    grpo_rollout_engine: Literal["transformers", "vllm"] = _key(
        "transformers",
        "What writes the completions: `transformers` runs the training model in process; `vllm` asks vLLM servers, "
        "which run in an environment of their own (docs/vllm.md). Needs grpo_vllm_python or grpo_vllm_url.",
    )
    grpo_vllm_python: str | None = _key(
        None,
        "Python of the environment that vLLM is installed in (`lcot vllm install DIR` makes one): the run starts a "
        "server with it, watches it and stops it.",
    )
    grpo_vllm_url: str | None = _key(
        None, "Servers that run already, comma-separated or a YAML list, for example `http://127.0.0.1:8000`."
    )
    grpo_vllm_devices: str | None = _key(
        None,
        "CUDA devices of the server that is started, for example `6,7`. Default: those of the training, with the "
        "server asleep during the update.",
    )
    grpo_vllm_tensor_parallel: int = _key(1, "Devices over which the server that is started splits the model.")
    grpo_vllm_memory: float = _key(
        0.4, "Share of a device's memory that the server that is started may take; on the CPU it has 4 GiB of cache."
    )
    grpo_vllm_args: str | None = _key(
        None, "Further arguments of `vllm serve` for the server that is started, as on a command line."
    )
    grpo_vllm_sync: Literal["auto", "adapter", "weights"] = _key(
        "auto",
        "How the server gets the policy: `adapter` loads the LoRA adapter, `weights` all weights (a LoRA merged), "
        "`auto` the adapter where vLLM can serve it.",
    )
    grpo_vllm_weights_dir: str | None = _key(
        None,
        "Folder through which the policy reaches the servers; they must see it under the same path. Default: shared "
        "memory for a server that is started, `output_dir` for grpo_vllm_url.",
    )
    grpo_vllm_timeout: float = _key(
        600.0, "Seconds after which a group of completions is asked for again, of another server where there is one."
    )
    grpo_vllm_retries: int = _key(3, "How often a group is asked for again before the run ends with a checkpoint.")
    grpo_vllm_start_timeout: float = _key(900.0, "Seconds that the server that is started may take to be ready.")
    grpo_vllm_api_key_env: str = _key(
        "VLLM_API_KEY",
        "Environment variable that holds the servers' API key; one is made for a server that is started.",
    )
    grpo_async_rollouts: bool = _key(
        False,
        "Write the next rollout with vLLM while this one is trained on: its policy is then one optimizer step (or, "
        "with several updates per rollout, one rollout) old, for which grpo_sampler_correction corrects.",
    )
    grpo_rollout_batch_size: int | None = _key(
        None,
        "Completions decoded at once per process; the next begins where one has ended. Lower it when rollouts run out "
        "of memory. Default: all.",
    )
    grpo_min_p: float = _key(
        0.0, "Tokens less probable than this share of the most probable one are not drawn; beside top_p and top_k."
    )
    grpo_stop_strings: str | None = _key(
        None, "Texts that end a completion, comma-separated or a YAML list, for example `</answer>`."
    )
    grpo_update_layout: Literal["auto", "packed", "rows"] = _key(
        "auto",
        "How the policy update computes completions: `packed` computes every prompt and its images once for its "
        "completions and pads nothing; `rows` pads one row per completion. `auto`: packed where the model can.",
    )
    grpo_micro_batch_tokens: int | None = _key(
        None,
        "Tokens (prompts once per group, and completions) of one forward and backward pass; default: "
        "per_device_train_batch_size x (cutoff_len + max_new_tokens). Lower it when the update runs out of memory.",
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
    grpo_log_token_log_probs: bool = _key(
        False, "Keep every token's log-probability in completions.jsonl too, in about a byte a token, for the viewer."
    )
    grpo_log_completions_to_trackers: int = _key(
        1,
        "Groups of completions that the trackers of report_to get as a table with pictures each time; 0: none. Needs "
        "grpo_log_completions.",
    )
    grpo_tracker_completions_steps: int = _key(
        50, "Optimizer steps after which the trackers get completions again; evaluations always send theirs."
    )
    grpo_max_skipped_steps: int = _key(
        5,
        "Optimizer steps in a row that may be left out since their gradient is NaN or infinite; the next one ends the "
        "run, with a checkpoint. 0: the first one does.",
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

    def stop_strings(self) -> tuple[str, ...]:
        """The texts of grpo_stop_strings."""
        return tuple(text for text in split_items(self.grpo_stop_strings or "") if text)

    def check_grpo(self, training: bool = True) -> None:
        """Raises ArgumentError for values that cannot work; `training` is False where the stage only evaluates."""
        for key, annotation in get_type_hints(GrpoArguments).items():
            # LLaMA-Factory checks choices on a command line, but not those of a YAML file.
            value = getattr(self, key)
            choices = [a for a in (annotation, *get_args(annotation)) if get_origin(a) is Literal]
            if choices and value is not None and value not in get_args(choices[0]):
                raise ArgumentError(f"{key}: {value!r} must be one of {', '.join(get_args(choices[0]))}.")
        if training and self.grpo_num_generations < 2:
            raise ArgumentError(
                f"grpo_num_generations: {self.grpo_num_generations} leaves every advantage at 0, since a completion is "
                "compared with the others of its group: write 2 or more (8 is usual)."
            )
        for key in (
            *("grpo_num_iterations", "grpo_logits_chunk_size", "grpo_dynamic_sampling_rounds"),
            "grpo_tracker_completions_steps",
        ):
            if getattr(self, key) < 1:
                raise ArgumentError(f"{key}: {getattr(self, key)} must be at least 1.")
        for key in (
            *("grpo_beta", "grpo_eval_generations", "grpo_llds_coef", "grpo_entropy_coef"),
            *("grpo_replay_groups", "grpo_max_skipped_steps", "grpo_log_completions_to_trackers"),
        ):
            if getattr(self, key) < 0:
                raise ArgumentError(f"{key}: {getattr(self, key)} must not be negative.")
        for key in (
            *("grpo_steps_per_generation", "grpo_rollout_batch_size", "grpo_micro_batch_tokens"),
            "grpo_ref_sync_steps",
        ):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ArgumentError(f"{key}: {getattr(self, key)} must be at least 1, or left out.")
        self._check_pass_rates()
        self._check_engine(training)
        if not 0.0 <= self.grpo_min_p < 1.0:
            raise ArgumentError(f"grpo_min_p: {self.grpo_min_p} must lie in [0, 1); 0 leaves nothing out.")
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

    def vllm_urls(self) -> list[str]:
        """The servers of grpo_vllm_url."""
        return [url.rstrip("/") for url in split_items(self.grpo_vllm_url or "") if url]

    def _check_engine(self, training: bool) -> None:
        written = [
            key for key in VLLM_KEYS if getattr(self, key) != next(f.default for f in fields(self) if f.name == key)
        ]
        if self.grpo_rollout_engine != "vllm":
            if written:
                raise ArgumentError(f"{written[0]} needs `grpo_rollout_engine: vllm`: write that, or leave it out.")
            return
        if bool(self.grpo_vllm_python) == bool(self.vllm_urls()):
            raise ArgumentError(
                "grpo_rollout_engine: vllm needs either grpo_vllm_python (the Python of vLLM's environment: the run "
                "starts a server) or grpo_vllm_url (servers that run already), and not both."
            )
        for url in self.vllm_urls():
            if not url.startswith(("http://", "https://")):
                raise ArgumentError(f"grpo_vllm_url: {url!r} must begin with http:// or https://.")
        for key in ("grpo_vllm_tensor_parallel", "grpo_vllm_timeout", "grpo_vllm_start_timeout"):
            if getattr(self, key) <= 0:
                raise ArgumentError(f"{key}: {getattr(self, key)} must be more than 0.")
        if self.grpo_vllm_retries < 0:
            raise ArgumentError(f"grpo_vllm_retries: {self.grpo_vllm_retries} must not be negative.")
        if not 0.0 < self.grpo_vllm_memory <= 1.0:
            raise ArgumentError(f"grpo_vllm_memory: {self.grpo_vllm_memory} must lie in (0, 1].")
        if training and self.grpo_async_rollouts and self.grpo_sampler_correction == "none":
            raise ArgumentError(
                "grpo_async_rollouts trains on completions of an older policy: write for example "
                "`grpo_sampler_correction: token_truncate`, which corrects for it."
            )

    def _check_pass_rates(self) -> None:
        low, high = self.grpo_min_pass_rate, self.grpo_max_pass_rate
        for key, rate in (("grpo_min_pass_rate", low), ("grpo_max_pass_rate", high)):
            if rate is not None and not 0.0 <= rate <= 1.0:
                raise ArgumentError(f"{key}: {rate} must lie between 0 and 1: it is a share of right completions.")
        if low is not None and high is not None and low > high:
            raise ArgumentError(
                f"grpo_min_pass_rate: {low} exceeds grpo_max_pass_rate: {high}; no prompt lies between."
            )


VLLM_KEYS = (
    *(item.name for item in fields(GrpoArguments) if item.name.startswith("grpo_vllm_")),
    "grpo_async_rollouts",
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
