"""Folders of runs as training leaves them, made up in milliseconds: for tests of what reads them, and to look at."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

QUESTION = "Start with the first number, then apply the steps in turn. What is the result?"
SOURCES = ("demo_rl", "geometry")


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_picture(path: Path, text: str, size: tuple[int, int] = (220, 90)) -> None:
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).text((20, 35), text, fill="black")
    picture.save(path)


def completion(
    *, step: int, sample: int | str, record: int, right: bool, length: int, source: str = "demo_rl", **keys: Any
) -> dict[str, Any]:
    """A line of completions.jsonl."""
    answer = str(record % 17 if right else record % 17 + 1)
    thought = " ".join(f"{record % 9} + {place} = {record % 9 + place}." for place in range(max(1, length // 8)))
    line = {
        "step": step,
        "sample": sample,
        "source": source,
        "record": record,
        "question": QUESTION,
        "images": [f"pictures/{record % 8}.png"],
        "opening": "<think>",
        "completion": f"{thought}</think> The result is \\boxed{{{answer}}}.",
        "ending": "truncated" if length >= 250 else "stopped",
        "num_tokens": length,
        "policy_step": step,
        "extracted": answer,
        "gold": str(record % 17),
        "answer_type": "number",
        "match": {},
        "outcome": "matched" if right else "mismatched",
        "rewards": {"accuracy": float(right), "format_think_boxed": 1.0},
        "reward": float(right) + 0.2,
        "advantage": 0.7 if right else -0.7,
    }
    return line | keys


def evaluation(
    *, step: int, rate: float, num_problems: int = 60, num_samples: int = 0, seed: int = 0, source: str | None = None
) -> list[dict[str, Any]]:
    """Lines of eval_completions.jsonl; harder problems are right less often, whatever the seed."""
    draw = random.Random(seed)
    lines = []
    for record in range(num_problems):
        own = min(1.0, max(0.0, rate * 1.6 - 1.2 * rate * (record % 10) / 10))
        for sample in range(num_samples + 1):
            name = source or SOURCES[record % 3 == 0]
            length = 40 + 12 * (record % 10) + draw.randrange(20)
            right = draw.random() < own
            lines.append(
                completion(step=step, sample=sample or "greedy", record=record, right=right, length=length, source=name)
            )
    return lines


def training(num_steps: int, num_prompts: int = 4, num_generations: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Lines of completions.jsonl of a run that learns."""
    draw = random.Random(seed)
    lines = []
    for step in range(num_steps):
        for place in range(num_prompts):
            record = (step * num_prompts + place) % 40
            rate = 0.2 + 0.6 * step / num_steps - 0.02 * (record % 10)
            for sample in range(num_generations):
                length = min(256, 30 + 12 * (record % 10) + draw.randrange(60))
                right = draw.random() < rate
                source = SOURCES[record % 3 == 0]
                lines.append(
                    completion(
                        step=step, sample=sample, record=record, right=right, length=length, source=source, group=place
                    )
                )
    return lines


def metrics(num_steps: int, seed: int = 0, every: int = 0) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of a GRPO run; every: steps between evaluations, 0 for none."""
    draw = random.Random(seed)
    lines: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        rate = 0.2 + 0.5 * step / num_steps + draw.gauss(0, 0.05)
        lines.append(
            {
                "step": step,
                "epoch": step / 100,
                "time": 1.8e9 + 4.0 * step,
                "loss": draw.gauss(0, 0.01),
                "grad_norm": "NaN" if step == 7 else math.exp(draw.gauss(-1, 0.5)),
                "learning_rate": 2e-4 * (1 - step / (num_steps + 1)),
                "reward": rate + 0.2,
                "reward/demo_rl": rate + 0.25,
                "reward/geometry": rate + 0.1,
                "reward_std": 0.4,
                "rewards/accuracy": rate,
                "rewards/format_think_boxed": 1.0,
                "accuracy": rate,
                "groups_without_variance": 0.3,
                "groups_all_right": 0.1,
                "groups_all_wrong": 0.2,
                "verdicts/unparsable": 0.05,
                "completions/length": 80 + 20 * rate,
                "completions/length/max": 256,
                "completions/length/min": 30,
                "completions/length/right": 70,
                "completions/length/wrong": 100,
                "completions/truncated": 0.06,
                "entropy": 0.9 * math.exp(-step / num_steps),
                "clip_region": 0.01,
                "sampler_gap": 1e-7 * draw.random(),
                "sampler_gap/max": 1e-5,
                "time/rollout": 2 + draw.random(),
                "time/update": 1.0,
                "tokens_per_second/rollout": 900.0,
                "memory/peak_gib/max": 3.2,
                "my_own_number": 3.0,
            }
        )
        if every and step % every == 0:
            lines.append({"step": step, "epoch": step / 100, "time": 1.8e9 + 4.0 * step, "eval_accuracy": 100 * rate})
    return lines


def record(**keys: Any) -> dict[str, Any]:
    """run.json."""
    return {
        "format": 1,
        "stage": "grpo",
        "model": "saves/sft",
        "template": "qwen2_vl",
        "datasets": ["demo_rl"],
        "eval_datasets": ["demo_test"],
        "finetuning_type": "full",
        "output_dir": "saves/grpo",
        "started": "2027-01-15T07:59:00+00:00",
        "versions": {"torch": "2.11.0", "transformers": "5.5.4"},
        "hardware": {"devices": ["cpu"], "num_processes": 1},
        "arguments": {
            "stage": "grpo",
            "model_name_or_path": "saves/sft",
            "learning_rate": 2e-4,
            "grpo_num_generations": 4,
            "grpo_reward_funcs": ["accuracy", "format_think_boxed"],
            "grpo_reward_weights": [1.0, 0.2],
            "max_new_tokens": 256,
            "hub_token": "***",
        },
        "plan": {"prompts_per_rollout": 4, "num_generations": 4},
    } | keys


def write_grpo_run(
    folder: Path,
    *,
    num_steps: int = 40,
    num_prompts: int = 4,
    num_generations: int = 4,
    seed: int = 0,
    **arguments: Any,
) -> Path:
    """A whole GRPO run with two evaluations, at its first and at its last step."""
    folder.mkdir(parents=True, exist_ok=True)
    written = record()
    written["arguments"] |= arguments
    (folder / "run.json").write_text(json.dumps(written), encoding="utf-8")
    write_lines(folder / "metrics.jsonl", metrics(num_steps, seed, every=max(1, num_steps // 4)))
    alarm = {"name": "entropy_collapse", "message": "entropy is 0.01 nats & falls.", "advice": "Try grpo_beta: 0.01."}
    write_lines(folder / "alarms.jsonl", [{"step": num_steps // 2, **alarm}])
    progress = {"state": "finished", "phase": "update", "step": num_steps, "max_steps": num_steps}
    (folder / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    (folder / "pictures").mkdir(exist_ok=True)
    for number in range(8):
        write_picture(folder / "pictures" / f"{number}.png", f"{number} | +3 | -5")
    write_lines(folder / "completions.jsonl", training(num_steps, num_prompts, num_generations, seed))
    write_lines(
        folder / "eval_completions.jsonl",
        [
            *evaluation(step=0, rate=0.3, num_samples=2, seed=seed),
            *evaluation(step=num_steps, rate=0.8, num_samples=2, seed=seed + 1),
        ],
    )
    report = {
        "demo_rl": {
            "file": "rl.parquet",
            "records": 500,
            "kept": 497,
            "dropped": 3,
            "mixed_in": 0,
            "notes": ["read as lcot_auto"],
            "findings": [
                {
                    "fault": "longer than cutoff_len",
                    "handling": "dropped",
                    "count": 3,
                    "examples": [{"record": 7, "detail": "600 tokens, cutoff_len 512: raise cutoff_len"}],
                }
            ],
        }
    }
    (folder / "data_report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def write_evaluation(folder: Path, rate: float, seed: int = 0, **keys: Any) -> Path:
    """An output_dir of eval.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "eval_completions.jsonl", evaluation(step=0, rate=rate, seed=seed, **keys))
    (folder / "eval_results.json").write_text(json.dumps({"eval_accuracy": 100 * rate}), encoding="utf-8")
    return folder
