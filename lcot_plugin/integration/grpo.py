"""Workflow of `stage: grpo`: what LLaMA-Factory's `run_sft` is to SFT. Reads like a table of contents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.extras.logging import get_logger
from llamafactory.extras.ploting import plot_loss
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.trainer_utils import create_modelcard_and_push, create_ref_model

from lcot_plugin.arguments import BatchPlan, plan_batches
from lcot_plugin.errors import ArgumentError
from lcot_plugin.evaluate.evaluator import Evaluator
from lcot_plugin.integration.grpo_trainer import GrpoTrainer
from lcot_plugin.integration.media import PromptEncoder
from lcot_plugin.integration.pass_rates import filter_by_pass_rate
from lcot_plugin.integration.refusals import RunArguments, check_settings
from lcot_plugin.integration.rollout_engine import (
    EngineParts,
    check_engine,
    rollout_engine,
    shares_devices,
    weight_bytes,
)
from lcot_plugin.integration.run_files import run_files
from lcot_plugin.integration.run_record import grpo_plan
from lcot_plugin.integration.trackers import check_trackers, follow_trackers
from lcot_plugin.integration.update_layout import make_layouts
from lcot_plugin.policy.objectives import check_objective
from lcot_plugin.policy.trainer import GrpoParts
from lcot_plugin.report.completion_images import CompletionImages
from lcot_plugin.report.completions import COMPLETIONS_FILE, CompletionLines, CompletionsLog
from lcot_plugin.report.health import HEALTH_PLOT, plot_health
from lcot_plugin.report.token_trace import TokenTracer
from lcot_plugin.rewards import Scorer
from lcot_plugin.rewards.requests import scoring_request
from lcot_plugin.types import SamplingParams
from lcot_plugin.vlm import VisionLanguageModel, unwrap_base_model

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it


def run_grpo(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    generating_args: Any,
    callbacks: list[Any] | None = None,
) -> None:
    """Trains (`do_train`), evaluates (`do_eval`), and writes everything to `output_dir`."""
    run = RunArguments(model_args, data_args, training_args, finetuning_args, generating_args)
    plan = check_arguments(run)
    with ExitStack() as stack:
        files = stack.enter_context(run_files(run, grpo_plan(run, plan)))
        scorer = stack.enter_context(make_scorer(run))
        tokenizer_module = load_tokenizer(model_args)
        tokenizer = tokenizer_module["tokenizer"]
        check_template(tokenizer, model_args, data_args)
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        files.phase("data")
        dataset_module = get_dataset(template, model_args, data_args, training_args, stage="grpo", **tokenizer_module)
        if training_args.do_train:
            train_dataset = dataset_module["train_dataset"]
            dataset_module["train_dataset"] = filter_by_pass_rate(train_dataset, finetuning_args, logger.info_rank0)
        files.phase("model")
        model = load_model(tokenizer, model_args, finetuning_args, training_args.do_train)
        ref_model = None
        if training_args.do_train and finetuning_args.grpo_beta:
            ref_model = create_ref_model(model_args, finetuning_args)

        files.phase("engine")
        parts = make_parts(run, model, template, tokenizer_module, plan, scorer, stack)
        parts.watcher = files
        trainer = GrpoTrainer(
            model=model,
            args=training_args,
            finetuning_args=finetuning_args,
            data_collator=list,
            callbacks=[*(callbacks or []), files],
            ref_model=ref_model,
            **dataset_module,
            **tokenizer_module,
        )
        trainer.setup_grpo(parts)
        files.stop_signals = trainer.stop_signals
        trainer.evaluator = make_evaluator(trainer, training_args)
        trainer.trackers = stack.enter_context(follow_trackers(trainer))
        used = {"train_dataset": training_args.do_train, "eval_dataset": training_args.do_eval}
        check_engine(
            parts, [dataset_module[name] for name, is_used in used.items() if is_used and name in dataset_module]
        )

        if training_args.do_train:
            train(trainer, training_args, finetuning_args)
        if training_args.do_eval:
            metrics = trainer.evaluate(metric_key_prefix="eval")
            trainer.log_metrics("eval", metrics)
            trainer.save_metrics("eval", metrics)
        create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)


def check_arguments(run: RunArguments) -> BatchPlan:
    """Everything that can be refused before a file is read. Raises ArgumentError."""
    training = run.training
    run.finetuning.check_grpo(training=training.do_train)
    if training.do_train and run.finetuning.grpo_ref_sync_steps and run.finetuning.ref_model:
        raise ArgumentError(
            "grpo_ref_sync_steps moves the reference to the policy, and ref_model names one of its own: leave one out."
        )
    if run.finetuning.grpo_async_rollouts and shares_devices(run):
        raise ArgumentError(
            "grpo_async_rollouts writes while the model trains, so the server needs devices of its own: name them in "
            "grpo_vllm_devices, or a running server in grpo_vllm_url."
        )
    for warning in check_objective(run.finetuning):
        logger.warning_rank0(warning)
    check_settings(run)
    check_trackers(training.report_to)
    if not training.do_train:
        group = run.finetuning.grpo_num_generations
        return BatchPlan(group, 1, 1, group, training.world_size)
    return plan_batches(
        run.finetuning, training.per_device_train_batch_size, training.gradient_accumulation_steps, training.world_size
    )


def check_template(tokenizer: Any, model_args: Any, data_args: Any) -> None:
    """LLaMA-Factory falls back to an empty template: no turns, and nothing that ends an answer."""
    if data_args.template == "empty" or (data_args.template is None and not tokenizer.chat_template):
        raise ArgumentError(
            f"{model_args.model_name_or_path} has no chat template, so a prompt could not say where the question ends: "
            "write the template of its family, for example `template: qwen2_vl` (a base model can be given any, it "
            "learns it in SFT)."
        )


def make_scorer(run: RunArguments) -> Scorer:
    """Has worker processes: to be used in a `with` statement."""
    arguments = run.finetuning
    return Scorer(
        arguments.reward_functions(),
        arguments.reward_weights(),
        deadline_seconds=arguments.grpo_reward_deadline,
        on_error=arguments.grpo_reward_errors,
        max_new_tokens=run.generating.max_new_tokens,
    )


def make_parts(
    run: RunArguments,
    model: Any,
    template: Any,
    tokenizer_module: dict[str, Any],
    plan: BatchPlan,
    scorer: Scorer,
    stack: ExitStack,
) -> GrpoParts:
    """What the training loop and the evaluation call. `stack` ends what the rollout engine has started."""
    arguments, generating = run.finetuning, run.generating
    tokenizer, plugin = tokenizer_module["tokenizer"], template.mm_plugin
    vlm = VisionLanguageModel(model, tokenizer, (plugin.image_token, plugin.video_token, plugin.audio_token))
    layout, rows = make_layouts(run, plan, model, vlm, tokenizer.pad_token_id)
    encoder = PromptEncoder(
        template,
        tokenizer_module["processor"],
        vlm,
        getattr(template, "bad_record_policy", "drop"),
        context_length(model),
    )
    end_tokens = end_token_ids(template, tokenizer, model, arguments.stop_strings())
    engine_parts = EngineParts(vlm, tokenizer, end_tokens, encoder.processor, encoder.pictures, weight_bytes(model))
    engine = stack.enter_context(rollout_engine(run, engine_parts))
    return GrpoParts(
        arguments=arguments,
        plan=plan,
        sampling=SamplingParams(
            num_generations=arguments.grpo_num_generations,
            max_new_tokens=generating.max_new_tokens,
            temperature=generating.temperature,
            top_p=generating.top_p,
            top_k=generating.top_k,
            min_p=arguments.grpo_min_p,
            repetition_penalty=generating.repetition_penalty,
            stop_strings=arguments.stop_strings(),
        ),
        vlm=vlm,
        engine=engine,
        scorer=scorer,
        encode=encoder,
        layout=layout,
        rows=rows,
        scoring_request=scoring_request,
        completions_log=CompletionsLog(Path(run.training.output_dir, COMPLETIONS_FILE)),
        completion_line=make_completion_lines(run, tokenizer),
        reward_weights=tuple(scorer.weights.values()),
        several_sources=len(run.data.dataset or ()) > 1,
        say=logger.info_rank0,
        warn=logger.warning_rank0,
    )


def make_completion_lines(run: RunArguments, tokenizer: Any) -> CompletionLines:
    """What is kept of a completion: its text and verdict, the pictures that the data set embeds, and, where the user
    asks for them, every token's log-probability."""

    def decode(token_ids: list[int]) -> str:
        return tokenizer.decode(token_ids, skip_special_tokens=run.generating.skip_special_tokens)

    traces = TokenTracer(decode) if run.finetuning.grpo_log_token_log_probs else None
    return CompletionLines(CompletionImages(Path(run.training.output_dir), logger.warning), traces)


def context_length(model: Any) -> int | None:
    """Tokens that the model has positions for, None where its configuration does not say."""
    return getattr(unwrap_base_model(model).config.get_text_config(), "max_position_embeddings", None)


def end_token_ids(template: Any, tokenizer: Any, model: Any, stop_strings: Sequence[str] = ()) -> list[int]:
    """Every token that ends a turn: the tokenizer's, the template's stop words, those of the generation config, and
    stop strings that are a special token, which a text without special tokens never holds."""
    special = set(tokenizer.all_special_tokens)
    of_strings = [tokenizer.convert_tokens_to_ids(text) for text in stop_strings if text in special]
    configured = unwrap_base_model(model).generation_config.eos_token_id
    configured = [configured] if isinstance(configured, int) else configured or []
    return sorted({*template.get_stop_token_ids(tokenizer), *configured, *of_strings})


def make_evaluator(trainer: GrpoTrainer, training_args: Any) -> Evaluator:
    """Greedy and sampled accuracy with the stage's own engine and scorer, and what guards the loop's rollouts."""
    parts = trainer.parts
    return Evaluator(
        engine=trainer.guarded,
        scorer=trainer.guarded,
        encode=parts.encode,
        sampling=replace(
            parts.sampling, num_generations=parts.arguments.grpo_eval_generations, seed=training_args.seed
        ),
        batch_size=training_args.per_device_eval_batch_size,
        scoring_request=parts.scoring_request,
    )


def train(trainer: GrpoTrainer, training_args: Any, finetuning_args: Any) -> None:
    """Trains, saves the model, the metrics and the curves."""
    filled = trainer.prompts_filled()
    if filled:
        logger.info_rank0(
            f"{len(trainer.train_dataset)} prompts do not fill the last batch of an epoch: it is filled with {filled} "
            "prompts from the start of the epoch, none is left out."
        )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if trainer.is_fsdp_enabled:
        # The Trainer saves no model in pieces, which checkpoints of FSDP may be.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    logger.info_rank0(trainer.health.summary())
    logger.info_rank0(f"`lcot report {training_args.output_dir}` makes one page of it all.")
    if trainer.dynamic_sampling.num_places:
        logger.info_rank0(trainer.dynamic_sampling.summary())
    if trainer.is_world_process_zero() and finetuning_args.plot_loss:
        plot_loss(training_args.output_dir, keys=curves(trainer))
        plot_health(
            trainer.state.log_history,
            Path(training_args.output_dir, HEALTH_PLOT),
            trainer.health.alarms,
            trainer.parts.sampling.max_new_tokens,
        )


def curves(trainer: GrpoTrainer) -> list[str]:
    """Names of the logged values that `plot_loss: true` draws."""
    keys = ["loss", "reward", "completions/length", "entropy"]
    keys += [f"rewards/{name}" for name in trainer.parts.scorer.functions]
    if trainer.args.eval_strategy != "no":
        several = isinstance(trainer.eval_dataset, dict)
        keys += [f"eval_{name}_accuracy" for name in trainer.eval_dataset] if several else ["eval_accuracy"]
    return keys
