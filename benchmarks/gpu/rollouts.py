"""Rollouts: the in-process engine beside transformers' `generate` and vLLM, same prompts, same lengths.

In: a shape, a setting of rollout.py, the side. Out: seconds of every timed rollout, prompts and pictures included, and
the least time in which the weights, keys and values could be read. How long every completion is was drawn beforehand,
because random weights end nothing. vLLM runs in an environment of its own (vllm_side.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import rollout
from benchmarks.gpu.cells import Cell, Measured
from benchmarks.gpu.roofline import Peak
from benchmarks.gpu.shapes import REAL, TINY, image_side
from benchmarks.gpu.tables import NONE, gib, rows_of, spread, table

SIDES = {
    "ours": "lcot-plugin, in process",
    "batch": "lcot-plugin, families that cannot be packed",
    "generate": "transformers' generate",
    "vllm": "vLLM",
}
MAIN = replace(rollout.MAIN, title="image of 256 tokens", rows=128, median=400, longest=2048, vocabulary=151936)
SETTINGS = {
    "main": MAIN,
    "text": replace(MAIN, title="text only", image_side=0),
    "long": replace(MAIN, title="long, image of 256 tokens", prompts=8, rows=64, median=1500, longest=8192),
    "refill": replace(MAIN, title="32 rows at once", rows=32),
}
QUICK = {
    "main": replace(rollout.QUICK, title="tiny", prompts=2, group_size=2, rows=4, median=6, longest=10, vocabulary=1024)
}
REPEATS = 3
NO_VLLM = "needs --vllm-python; `lcot vllm install DIR` makes the environment"


def cells(folder: Path, device: str, quick: bool, vllm_python: Path | None = None) -> list[Cell]:
    found = []
    for shape in TINY[:1] if quick else REAL:
        for name, setting in (QUICK if quick else SETTINGS).items():
            for side in SIDES:
                job = job_of(folder, device, shape, side, setting, 1 if quick else REPEATS)
                if side == "vllm":
                    job["vllm_python"] = str(vllm_python.absolute()) if vllm_python else ""
                missing = NO_VLLM if side == "vllm" and vllm_python is None else ""
                found.append(Cell("rollout", f"{shape}_{name}_{side}", job, missing))
    return found


def job_of(
    folder: Path,
    device: str,
    shape: str,
    side: str,
    setting: rollout.Setting,
    repeats: int,
    lengths: list[list[int]] | None = None,
) -> dict[str, Any]:
    """lengths: [prompts][group_size], of the completions; drawn from the setting's distribution where left out."""
    values = {"folder": str(folder), "device": device, "shape": shape, "side": side, "repeats": repeats}
    return {**values, "setting": asdict(setting), "lengths": lengths or rollout.draw_lengths(setting)}


# --- in the cell's process --------------------------------------------------------------------------------------------


def measure(job: dict[str, Any]) -> dict[str, Any]:
    setting = rollout.Setting(**{**job["setting"], "text_tokens": tuple(job["setting"]["text_tokens"])})
    return by_vllm(job, setting) if job["side"] == "vllm" else in_process(job, setting)


def in_process(job: dict[str, Any], setting: rollout.Setting) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    from benchmarks.grpo_update_sides import Placement, load, wait_for

    placement = Placement(job["device"], "float32" if job["device"] == "cpu" else "bfloat16")
    model, processor = load(Path(job["folder"], "models", job["shape"]), placement)
    model.eval().requires_grad_(False)
    model.generation_config.eos_token_id = None  # no completion ends before its length
    tokenizer = rollout.word_tokenizer(setting.vocabulary, processor.tokenizer.pad_token_id)
    prompts = rollout.draw_prompts(setting, model.config, first_word=len(processor.tokenizer))
    lengths, silent = job["lengths"], tqdm(disable=True)

    def write(some: rollout.Setting, given: list[Any], limits: list[list[int]]) -> int:
        """Tokens written."""
        if job["side"] == "generate":
            return sum(rollout.run_generate(some, model, tokenizer, given, limits, silent))
        shared = job["side"] == "ours"
        groups = rollout.run_engine(some, model, tokenizer, given, limits, silent, shared=shared)
        return sum(len(completion.token_ids) for group in groups for completion in group.completions)

    few = replace(setting, prompts=2, rows=2 * setting.group_size)
    with torch.no_grad():
        write(few, prompts[:2], [[8] * setting.group_size] * 2)
        if job["device"] != "cpu":
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(job["repeats"], lambda: write(setting, prompts, lengths), lengths, lambda: wait_for(placement))
    num_tokens = [len(prompt.record.input_ids) for prompt in prompts]
    on_gpu = job["device"] != "cpu"
    return {
        "seconds": seconds,
        "tokens": sum(map(sum, lengths)),
        "least_bytes": least_bytes(model, setting, num_tokens, lengths),
        "allocated": torch.cuda.max_memory_allocated() if on_gpu else 0,
        "reserved": torch.cuda.max_memory_reserved() if on_gpu else 0,
    }


def timed(repeats: int, write: Callable[[], int], lengths: list[list[int]], wait: Callable[[], None]) -> list[float]:
    """Seconds of every rollout; each must have written what was asked for."""
    seconds = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        written = write()
        wait()
        seconds.append(time.perf_counter() - started)
        if written != sum(map(sum, lengths)):
            raise RuntimeError(f"{written} tokens were written, {sum(map(sum, lengths))} were asked for")
    return seconds


def least_bytes(model: Any, setting: rollout.Setting, prompts: list[int], lengths: list[list[int]]) -> float:
    """What has to be read however it is done: the language model's weights once per step of all rows, each completion's
    keys and values for each of its tokens, each prompt's once per step of its group.

    prompts: their tokens. With fewer rows than completions as many steps as if no row were ever empty.
    """
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    head = model.get_output_embeddings().weight
    layers = [p for name, p in model.named_parameters() if "visual" not in name and ".layers." in name]
    weights = sum(p.numel() for p in layers) + head.numel()
    kept = 2 * text.num_hidden_layers * text.num_key_value_heads * width
    longest = [max(group) for group in lengths]
    steps = max(max(longest), -(-sum(map(sum, lengths)) // setting.rows))
    own = sum(length * (length + 1) // 2 for group in lengths for length in group)
    of_prompts = sum(tokens * most for tokens, most in zip(prompts, longest, strict=True))
    return head.element_size() * (weights * steps + kept * (own + of_prompts))


def by_vllm(job: dict[str, Any], setting: rollout.Setting) -> dict[str, Any]:
    """In vLLM's environment; its memory is what it was told to take."""
    folder = Path(job["folder"], "vllm")
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer = folder / "job.json", folder / "answer.json"
    answer.unlink(missing_ok=True)
    side = image_side(job["shape"], setting.image_side**2 // 4) if setting.image_side else 0
    model = Path(job["folder"], "models", job["shape"])
    asked.write_text(json.dumps({**job, "model": str(model), "pixels": side, "answer": str(answer)}))
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTORCH_ALLOC_CONF")}
    script = Path(__file__).with_name("vllm_side.py")
    # -I: without this folder on its path, where vLLM would find our kernels.py for Hugging Face's package.
    done = subprocess.run([job["vllm_python"], "-I", str(script), str(asked)], env=own, stderr=subprocess.STDOUT)
    if not answer.exists():
        raise RuntimeError(f"vLLM's process ended with code {done.returncode} and no figures; its output is in the log")
    return {**json.loads(answer.read_text()), "least_bytes": None, "allocated": 0, "reserved": 0}


# --- the table --------------------------------------------------------------------------------------------------------


def report(measured: Sequence[Measured], top: Peak, hardware: dict[str, Any]) -> str:
    known = {cell.name: result for cell, result in measured if "tokens" in result}

    def keys(cell: Cell) -> list[Any]:
        setting = cell.job["setting"]
        rows = f"{setting['prompts']} x {setting['group_size']}, {setting['rows']} at once"
        return [cell.job["shape"], setting["title"], rows, SIDES[cell.job["side"]]]

    def values(cell: Cell, result: dict[str, Any]) -> list[Any]:
        least = result["least_bytes"]
        seconds = [result["tokens"] / one for one in result["seconds"]]
        faster = quotient(known, cell)
        return [
            spread(seconds, 0),
            f"{faster:.2f}" if faster else NONE,
            spread(result["seconds"]),
            f"{median_of(result) / (least / top.bandwidth):.1f} x" if least else NONE,
            gib(result["allocated"]),
            gib(result["reserved"]),
        ]

    header = ["shape", "setting", "completions", "side", "tokens/s", "ours is x", "seconds", "of the least time"]
    header += ["GiB allocated", "GiB reserved"]
    text = (
        "Tokens of completions per second of the whole rollout, prompts and pictures included; the same lengths for "
        "all. The least time is that of reading the weights once per step of all rows, and keys and values, at the "
        "roof's bandwidth. vLLM takes the memory that it is told to take."
    )
    return f"## Rollouts\n\n{text}\n\n{table(header, rows_of(measured, keys, values, len(header) - 4))}\n"


def median_of(result: dict[str, Any]) -> float:
    from statistics import median

    return median(result["seconds"])


def quotient(known: dict[str, dict[str, Any]], cell: Cell) -> float | None:
    """How many times as long the cell's side takes as ours."""
    side = cell.job["side"]
    ours = known.get(cell.name.removesuffix(side) + "ours")
    return None if side == "ours" or ours is None else median_of(known[cell.name]) / median_of(ours)


def figures(measured: Sequence[Measured], top: Peak) -> dict[str, Any]:
    done = [(cell, result) for cell, result in measured if "tokens" in result]
    return {"tokens_per_second": {cell.name: round(result["tokens"] / median_of(result), 1) for cell, result in done}}
