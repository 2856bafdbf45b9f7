"""The GRPO trainer of LLaMA-Factory: its own trainer with our loop before it, and an evaluation by verdicts.

Optimizers, schedulers, freezing, adapters, checkpoints and export are CustomSeq2SeqTrainer's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from tqdm.auto import tqdm
from transformers import TrainerCallback

from lcot_plugin.evaluate.evaluator import Evaluator, ProblemResult, evaluation_metrics
from lcot_plugin.integration.media import PromptEncoder
from lcot_plugin.integration.trackers import Trackers
from lcot_plugin.packing.families import trains_vision
from lcot_plugin.policy.faults import write_lines
from lcot_plugin.policy.prompts import prompt_records
from lcot_plugin.policy.trainer import GrpoParts, GrpoTrainerMixin
from lcot_plugin.report.completions import COMPLETIONS_FILE, CompletionsLog, image_name

BEST = -1
"""Version of the policy that `load_best_model_at_end` has loaded."""


class _TakeBackEvalCompletions(TrainerCallback):
    """A fresh run starts its files of evaluated completions anew; a resumed one drops what follows its checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            for path in Path(args.output_dir).glob(f"eval*_{COMPLETIONS_FILE}"):
                # The evaluation at a checkpoint's own step came before it was saved.
                CompletionsLog(path).drop_from_step(state.global_step + 1 if state.global_step else 0)


class GrpoTrainer(GrpoTrainerMixin, CustomSeq2SeqTrainer):
    """Trains with GRPO; evaluates greedy accuracy, avg@k and pass@k."""

    evaluator: Evaluator
    trackers: Trackers | None = None
    control: Any
    _best_is_loaded = False

    def setup_grpo(self, parts: GrpoParts) -> None:
        super().setup_grpo(parts)
        if self.args.do_train and self.accelerator.num_processes > 1 and trains_vision(self.model):
            assert isinstance(parts.encode, PromptEncoder)
            self.image_filler = parts.encode.white_image(self.processing_class)
        self.add_callback(_TakeBackEvalCompletions())

    def train(self, *arguments: Any, **settings: Any) -> Any:
        self._best_is_loaded = False
        return super().train(*arguments, **settings)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._best_is_loaded = True

    @property
    def policy_version(self) -> int:
        """The optimizer steps that the policy has made; BEST where an earlier checkpoint's weights were loaded, since
        the steps are then those of the last ones."""
        return BEST if self._best_is_loaded else self.state.global_step

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **_: Any,
    ) -> dict[str, float]:
        """Metrics over the evaluation set, or over each of several (`eval_on_each_dataset`), in percent."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, dict):
            metrics: dict[str, float] = {}
            for name, dataset in eval_dataset.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics

        started = time.perf_counter()
        self.parts.watcher.phase("evaluation")
        results = self._evaluate_share(eval_dataset)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in evaluation_metrics(results).items()}
        metrics |= self._reward_counts(metric_key_prefix)
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 2)
        lines = self._write_eval_completions(results, metric_key_prefix) if self.is_world_process_zero() else []
        self.log(metrics)
        if self.trackers is not None:
            self.trackers.show_evaluation(metric_key_prefix, lines)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _reward_counts(self, prefix: str) -> dict[str, float]:
        """What rewards went without in this evaluation, over all processes: errors left out, requests refused."""
        total: Counter[str] = Counter()
        for counts in gather_object([self.parts.scorer.take_counts()]):
            total.update(counts)
        return {f"{prefix}_{name}": float(number) for name, number in sorted(total.items())}

    def _evaluate_share(self, dataset: Any) -> list[ProblemResult]:
        """This process's share of the problems; returns the results of all, in the data set's order."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        records = prompt_records([dataset[i] for i in range(rank, len(dataset), world)])
        self.parts.watcher.phase("evaluation", len(records))
        self.ahead.wait()  # the servers must not get other weights meanwhile
        with (
            self.parts.engine.policy(self.model_wrapped, self.accelerator, self.policy_version) as model,
            tqdm(
                total=len(records),
                desc="Evaluating",
                unit="problem",
                disable=self.args.disable_tqdm or not self.is_local_process_zero(),
            ) as bar,
            self.accelerator.autocast(),
        ):

            def advance(number: int) -> None:
                bar.update(number)
                self.parts.watcher.advance(number)

            results = self.evaluator.run(model, records, advance)
        # Not before: until `policy` is left, a server that dies is looked after for the other processes.
        self.guarded.agree(self)
        gathered: list[list[ProblemResult]] = gather_object([[self._light(result) for result in results]])
        return [result for turn in range(len(gathered[0])) for share in gathered for result in share[turn : turn + 1]]

    def _light(self, result: ProblemResult) -> ProblemResult:
        line, traced = self.parts.completion_line, self.parts.arguments.grpo_log_token_log_probs
        return light(result, getattr(line, "image_name", image_name), traced)

    def _write_eval_completions(self, results: list[ProblemResult], prefix: str) -> list[dict[str, Any]]:
        step = self.state.global_step
        log = CompletionsLog(Path(self.args.output_dir, f"{prefix}_{COMPLETIONS_FILE}"))
        log.drop_from_step(step)  # the same evaluation, made again; a run that only evaluates starts the file anew
        lines = [
            self.parts.completion_line(
                result.record,
                completion,
                score,
                step=step,
                group=group,
                sample="greedy" if sample == 0 else sample,
            )
            for group, result in enumerate(results)
            for sample, (completion, score) in enumerate(zip(result.completions, result.scores, strict=True))
        ]
        write_lines(log, lines, self.faults, self.parts.warn)
        return lines


def light(
    result: ProblemResult, name: Callable[[Any], str] = image_name, with_log_probs: bool = False
) -> ProblemResult:
    """The result without what neither the metrics nor the log need: images become their names, prompts go, and the
    sampler's log-probabilities where they are not logged. Every process sends its own to all others."""
    images = [name(image) for image in result.record.images]
    record = replace(result.record, input_ids=[], images=images, videos=[], audios=[])
    completions = result.completions
    if not with_log_probs:
        completions = [replace(completion, sampler_logps=[], policy_logps=None) for completion in completions]
    return ProblemResult(record, completions, result.scores)
