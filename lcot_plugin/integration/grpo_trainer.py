"""The GRPO trainer of LLaMA-Factory: its own trainer with our loop before it, and an evaluation by verdicts.

Optimizers, schedulers, freezing, adapters, checkpoints and export are CustomSeq2SeqTrainer's.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from tqdm.auto import tqdm

from lcot_plugin.evaluate.evaluator import Evaluator, ProblemResult, evaluation_metrics
from lcot_plugin.policy.trainer import GrpoTrainerMixin, prompt_records
from lcot_plugin.report.completions import completion_line

EVAL_COMPLETIONS_FILE = "eval_completions.jsonl"


class GrpoTrainer(GrpoTrainerMixin, CustomSeq2SeqTrainer):
    """Trains with GRPO; evaluates greedy accuracy, avg@k and pass@k."""

    evaluator: Evaluator
    control: Any

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
        results = self._evaluate_share(eval_dataset)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in evaluation_metrics(results).items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - started, 2)
        if self.is_world_process_zero():
            self._write_eval_completions(results, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate_share(self, dataset: Any) -> list[ProblemResult]:
        """This process's share of the problems; returns the results of all, in the data set's order."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        records = prompt_records([dataset[i] for i in range(rank, len(dataset), world)])
        model = self.accelerator.unwrap_model(self.model)
        with (
            tqdm(
                total=len(records),
                desc="Evaluating",
                unit="problem",
                disable=self.args.disable_tqdm or not self.is_local_process_zero(),
            ) as bar,
            self.compute_loss_context_manager(),
        ):
            results = self.evaluator.run(model, records, bar.update)
        gathered: list[list[ProblemResult]] = gather_object([results])
        return [result for turn in range(len(gathered[0])) for share in gathered for result in share[turn : turn + 1]]

    def _write_eval_completions(self, results: list[ProblemResult], prefix: str) -> None:
        path = Path(self.args.output_dir, EVAL_COMPLETIONS_FILE.replace("eval", prefix, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for result in results:
                pairs = zip(result.completions, result.scores, strict=True)
                for sample, (completion, score) in enumerate(pairs):
                    line = completion_line(
                        result.record,
                        completion,
                        score,
                        step=self.state.global_step,
                        sample="greedy" if sample == 0 else sample,
                    )
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
