"""Where the time of a step goes: kernels by name and kind, what is not in kernels, and the gap to the roof.

In: a shape and a kind of step (a packed SFT step, the update of a GRPO group, decoding). Out: seconds of the step
without the profiler, and from one profiled step every kernel's time. The least time is that of the mathematics'
operations (flops.py) or of the bytes that decoding must read, at the roof.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.cells import OK, Cell, Measured
from benchmarks.gpu.flops import ModelOperations, Work
from benchmarks.gpu.roofline import Peak
from benchmarks.gpu.shapes import REAL, TINY
from benchmarks.gpu.tables import gib, percent, rows_of, spread, table

KINDS = {"sft": "packed SFT step", "update": "update of a GRPO group", "decode": "decoding"}
LOADS = {
    False: {"budget": 16384, "median": 1500, "image_tokens": 256, "group": 8, "rows": 64, "new_tokens": 64},
    True: {"budget": 256, "median": 40, "image_tokens": 16, "group": 2, "rows": 4, "new_tokens": 4},
}
REPEATS = 5
TOP = 12
# The first that fits a kernel's name.
FAMILIES = {
    "attention": r"flash|fmha|attention|attn|sdpa",
    "matrix products": r"gemm|nvjet|cutlass|cublas|xmma|mma_|splitk|addmm|::mm|::bmm|matmul",
    "copies": r"memcpy|memset|copy",
}
OTHER = "everything else"


def cells(folder: Path, device: str, quick: bool) -> list[Cell]:
    base = {"folder": str(folder), "device": device, "load": LOADS[quick], "repeats": 1 if quick else REPEATS}
    return [
        Cell("profile", f"{shape}_{kind}", {**base, "shape": shape, "kind": kind})
        for shape in (TINY[:1] if quick else REAL)
        for kind in KINDS
    ]


# --- in the cell's process --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What is profiled, and what it costs at least."""

    run: Callable[[], Any]
    operations: float
    num_bytes: float
    tokens: int


def measure(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    from benchmarks.grpo_update_sides import Placement, load, wait_for

    on_gpu = job["device"] != "cpu"
    placement = Placement(job["device"], "bfloat16" if on_gpu else "float32", checkpointing=job["kind"] != "decode")
    model, processor = load(Path(job["folder"], "models", job["shape"]), placement)
    step = STEPS[job["kind"]](job["load"], model, processor)
    step.run()
    step.run()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(job["repeats"]):
        started = time.perf_counter()
        step.run()
        wait_for(placement)
        seconds.append(time.perf_counter() - started)
    allocated, reserved = 0, 0
    if on_gpu:
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    kernels = profiled(step.run, on_gpu)
    return {
        "seconds": seconds,
        "tokens": step.tokens,
        "operations": step.operations,
        "least_bytes": step.num_bytes,
        "allocated": allocated,
        "reserved": reserved,
        "busy": union(kernels),
        "kernels": top(kernels),
        "families": families(kernels),
        "num_kernels": len(kernels),
    }


def sft_step(load: dict[str, Any], model: Any, processor: Any) -> Step:
    """Whole records of one length with a picture, the language model's weights trained, AdamW."""
    import torch

    from benchmarks.grpo_update_sides import Case, groups_of
    from lcot_plugin.packing.attention import segment_attention
    from lcot_plugin.packing.batch import IGNORE_INDEX, pack_examples
    from lcot_plugin.packing.loss import packed_nll
    from lcot_plugin.types import PackExample
    from lcot_plugin.vlm import VisionLanguageModel

    prompt = Case(image_tokens=load["image_tokens"], generations=1, median=load["median"], sigma=0.0)
    length = len(groups_of(prompt, model.config, len(processor.tokenizer))[0].prompt_ids) + load["median"]
    case = Case(**{**vars(prompt), "prompts": max(1, load["budget"] // length)})
    examples = [
        PackExample(
            group.prompt_ids + group.completions[0],
            [IGNORE_INDEX] * len(group.prompt_ids) + group.completions[0],
            group.media,
        )
        for group in groups_of(case, model.config, len(processor.tokenizer))
    ]
    batch = pack_examples(examples, VisionLanguageModel(model, processor.tokenizer)).to(model.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=model.device.type == "cuda")

    def run() -> None:
        with segment_attention(model, batch.segments):
            total, _ = packed_nll(model, model, batch)
            (total / len(batch.target_ids)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    squares = sum(length**2 for length in batch.segments.lengths)
    return training_step(model, run, batch, squares)


def update_step(load: dict[str, Any], model: Any, processor: Any) -> Step:
    """Forward and backward of one prompt and its completions in a pack."""
    from benchmarks.grpo_update_sides import Case, groups_of, placeholders
    from lcot_plugin.packing.attention import segment_attention
    from lcot_plugin.packing.groups import pack_groups
    from lcot_plugin.policy.head import packed_log_probs
    from lcot_plugin.types import PackGroup
    from lcot_plugin.vlm import VisionLanguageModel

    case = Case(image_tokens=load["image_tokens"], generations=load["group"], median=load["median"] // 3)
    [group] = groups_of(case, model.config, len(processor.tokenizer))
    vlm = VisionLanguageModel(model, processor.tokenizer)
    batch = pack_groups([PackGroup(group.prompt_ids, group.completions, group.media)], vlm).to(model.device)
    banned = placeholders(vlm, processor.tokenizer).to(model.device)

    def run() -> None:
        with segment_attention(model, batch.segments):
            log_probs, _ = packed_log_probs(model, model, batch, banned=banned, temperature=1.0, chunk_size=512)
            (-log_probs.mean()).backward()
        model.zero_grad(set_to_none=True)

    prompt, *own = batch.segments.lengths
    squares = prompt**2 + sum(length**2 + 2 * prompt * length for length in own)
    return training_step(model, run, batch, squares)


def training_step(model: Any, run: Callable[[], None], batch: Any, squares: int) -> Step:
    from benchmarks.step_watch import patches

    tokens = batch.input_ids.shape[1]
    work = Work(tokens, squares, len(batch.target_ids), *patches(batch.media))
    return Step(run, ModelOperations.of(model).training(work, "full"), 0.0, tokens)


def decode_step(load: dict[str, Any], model: Any, processor: Any) -> Step:
    """A short rollout with all rows at once; prompts are a small part of it."""
    from tqdm import tqdm

    from benchmarks import rollout
    from benchmarks.gpu.rollouts import least_bytes

    model.eval().requires_grad_(False)
    vocabulary, group = model.config.get_text_config().vocab_size, load["group"]
    prompts = max(1, load["rows"] // group)
    setting = rollout.Setting(
        "", prompts, group, load["rows"], image_side=round(2 * load["image_tokens"] ** 0.5), vocabulary=vocabulary
    )
    tokenizer = rollout.word_tokenizer(vocabulary, processor.tokenizer.pad_token_id)
    drawn = rollout.draw_prompts(setting, model.config, first_word=len(processor.tokenizer))
    lengths = [[load["new_tokens"]] * group] * prompts

    def run() -> None:
        rollout.run_engine(setting, model, tokenizer, drawn, lengths, tqdm(disable=True), shared=True)

    num_tokens = [len(prompt.record.input_ids) for prompt in drawn]
    return Step(run, 0.0, least_bytes(model, setting, num_tokens, lengths), sum(map(sum, lengths)))


STEPS = {"sft": sft_step, "update": update_step, "decode": decode_step}

Kernel = tuple[str, float, float]
"""Name, start and end in seconds."""


def profiled(run: Callable[[], Any], on_gpu: bool) -> list[Kernel]:
    """The kernels of a run: those of the GPU, its copies included; of a CPU the operations that call no others.

    Raises RuntimeError where the profiler sees none.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        found = kernels_of(json.loads(file.read_text(errors="replace")))
    if not found:
        raise RuntimeError(
            "torch's profiler saw no kernels: it needs CUPTI, which comes with torch's CUDA wheels, and a container "
            "that lets it trace"
        )
    return found


def kernels_of(trace: dict[str, Any]) -> list[Kernel]:
    """From a Chrome trace, whose times are microseconds."""
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"}
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X" and "dur" in event]
    on_gpu = [event for event in events if event.get("cat") in kinds]
    # A product begins with a look at its operands (resolve_conj), which is not what it consists of.
    operations = [event for event in events if event.get("cat") == "cpu_op" and "::resolve_" not in event["name"]]
    chosen = on_gpu or leaves(operations)
    return [(e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6) for e in chosen]


def leaves(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that hold no other of their thread: an operation is called by the one that it lies in."""
    found = []
    ordered = sorted(events, key=lambda event: (str(event["tid"]), event["ts"], -event["dur"]))
    for event, after in zip(ordered, [*ordered[1:], None], strict=True):
        inside = after is not None and after["tid"] == event["tid"] and after["ts"] < event["ts"] + event["dur"]
        if not inside:
            found.append(event)
    return found


def union(kernels: Sequence[Kernel]) -> float:
    """Seconds in which at least one kernel ran: several streams overlap."""
    total, reached = 0.0, float("-inf")
    for _, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def top(kernels: Sequence[Kernel]) -> list[tuple[str, float, int]]:
    """Name, seconds and calls of those that take longest."""
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, start, end in kernels:
        seconds[name] += end - start
        calls[name] += 1
    return [(name, took, calls[name]) for name, took in seconds.most_common(TOP)]


def families(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Seconds by kind of kernel."""
    found: Counter[str] = Counter({name: 0.0 for name in (*FAMILIES, OTHER)})
    for name, start, end in kernels:
        found[family_of(name)] += end - start
    return dict(found)


def family_of(name: str) -> str:
    return next((family for family, pattern in FAMILIES.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


# --- the table --------------------------------------------------------------------------------------------------------


def least_seconds(result: dict[str, Any], top: Peak) -> float:
    return top.seconds(result["operations"], result["least_bytes"])


def report(measured: Sequence[Measured], top: Peak, hardware: dict[str, Any]) -> str:
    def keys(cell: Cell) -> list[Any]:
        return [cell.job["shape"], KINDS[cell.job["kind"]]]

    def values(cell: Cell, result: dict[str, Any]) -> list[Any]:
        took, least = median(result["seconds"]), least_seconds(result, top)
        of_kinds = [percent(seconds / took) for seconds in result["families"].values()]
        return [
            f"{result['tokens']:,}",
            spread(result["seconds"], 3),
            f"{least:.4f}",
            f"{took / least:.2f} x",
            *of_kinds,
            percent(max(0.0, took - result["busy"]) / took),
            f"{result['num_kernels']:,}",
            gib(result["allocated"]),
        ]

    header = ["shape", "step", "tokens", "seconds", "least time", "gap", *FAMILIES, OTHER]
    header += ["outside of kernels", "kernels", "GiB allocated"]
    text = (
        "Seconds of a step without the profiler; the least time is that of its mathematics' operations at the roof, of "
        "decoding that of the bytes it must read. Shares are of the step's time: kernels of one profiled step by kind, "
        "layers recomputed by gradient checkpointing included, and the time in which no kernel ran."
    )
    parts = ["## Kernels", text, table(header, rows_of(measured, keys, values, len(header) - 2))]
    for cell, result in measured:
        if result["status"] == OK:
            took = median(result["seconds"])
            rows = [[name[:110], percent(seconds / took), f"{calls:,}"] for name, seconds, calls in result["kernels"]]
            title = f"{cell.job['shape']}, {KINDS[cell.job['kind']]}:"
            parts += [title, table(["kernel", "of the step", "calls"], rows)]
    return "\n\n".join(parts) + "\n"


def figures(measured: Sequence[Measured], top: Peak) -> dict[str, Any]:
    done = [(cell, result) for cell, result in measured if result["status"] == OK]
    return {
        "gap": {cell.name: round(median(r["seconds"]) / least_seconds(r, top), 2) for cell, r in done},
        "outside_of_kernels": {cell.name: round(max(0.0, 1 - r["busy"] / median(r["seconds"])), 4) for cell, r in done},
    }
