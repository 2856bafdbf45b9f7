"""Plans of packs on simulated data: this plugin's beside LLaMA-Factory's and TRL's packers.

    python benchmarks/packing_plan.py [--examples 100000] [--micro-steps 4] [--seed 0] [--quick]

Nothing is trained: lengths and patches are drawn, every packer makes packs of them, and the waiting between ranks
follows from a cost model (a language model of 7 billion parameters, a vision tower of 675 million that trains). The
others' packs are shuffled over steps and ranks, as their data loaders do; what they pad is not held against them,
except in the group_by_length rows, whose batches are computed at the length of their longest example. The last line is
JSON, of the long-CoT data at 16,384 tokens; shares of time are in percent there. Results are kept in
benchmarks/results/packing_plan.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lcot_plugin.packing.cost import CostModel  # noqa: E402
from lcot_plugin.packing.plan import number_of_packs, plan_epoch  # noqa: E402
from lcot_plugin.packing.statistics import PlanStatistics, plan_statistics  # noqa: E402
from lcot_plugin.packing.stream import StreamPlanner  # noqa: E402
from lcot_plugin.types import ExampleSizes, PackLimits, PackPlan  # noqa: E402

COST = CostModel(token=24576.0, square=1.0, patch=2183.0)
PREPROCESSING_BATCH_SIZE = 1000  # LLaMA-Factory's default, and that of datasets.map, which TRL packs with
PER_DEVICE_BATCH = 8  # of the group_by_length rows
TIMED_EXAMPLES = 1_000_000
DISTRIBUTIONS = {
    # name: (median length, 95th percentile, shares of 0, 1, 2, 3 and 4 pictures, their median tokens)
    "long CoT": (1500, 6000, (0.2, 0.65, 0.07, 0.05, 0.03), 500),
    "long CoT, text only": (1500, 6000, (1.0, 0.0, 0.0, 0.0, 0.0), 500),
    "many pictures": (3000, 9000, (0.1, 0.2, 0.2, 0.2, 0.3), 1000),
    "short CoT": (500, 1500, (0.1, 0.9, 0.0, 0.0, 0.0), 250),
}


def draw_sizes(distribution: str, num_examples: int, seed: int) -> ExampleSizes:
    """Log-normal lengths up to 16,000 tokens; four patches per picture token, pictures at most 80 % of an example."""
    median, percentile_95, shares, picture_median = DISTRIBUTIONS[distribution]
    generator = np.random.default_rng(seed)
    spread = np.log(percentile_95 / median) / 1.645
    tokens = np.clip(generator.lognormal(np.log(median), spread, num_examples), 32, 16000).astype(np.int64)
    num_pictures = generator.choice(5, num_examples, p=shares)
    picture_tokens = np.zeros(num_examples)
    for number in range(1, 5):
        drawn = np.clip(generator.lognormal(np.log(picture_median), 0.7, num_examples), 64, 4096)
        picture_tokens += np.where(num_pictures >= number, drawn, 0)
    patches = 4 * np.minimum(picture_tokens, 0.8 * tokens).astype(np.int64)
    return ExampleSizes(tokens, patches, tokens)


def shuffled_plan(packs: list[list[int]], num_ranks: int, micro_steps: int, seed: int) -> PackPlan:
    """Packs over steps and ranks at random; what does not fill the last row is left out."""
    order = np.random.default_rng(seed).permutation(len(packs))[: len(packs) // num_ranks * num_ranks]
    chosen = [packs[index] for index in order]
    return PackPlan(
        indices=np.array([index for pack in chosen for index in pack]),
        offsets=np.cumsum([0, *map(len, chosen)]),
        idle=np.zeros(len(chosen), dtype=bool),
        num_ranks=num_ranks,
        micro_steps=micro_steps,
    )


def knapsack_packs(sizes: ExampleSizes, limits: PackLimits) -> list[list[int]]:
    """LLaMA-Factory's `packing: true`, as its PackedSupervisedDatasetProcessor calls it."""
    from llamafactory.data.processor.processor_utils import greedy_knapsack

    packs = []
    for start in range(0, len(sizes), PREPROCESSING_BATCH_SIZE):
        lengths = sizes.tokens[start : start + PREPROCESSING_BATCH_SIZE].tolist()
        examples = defaultdict(list)
        for index, length in enumerate(lengths):
            examples[length].append(start + index)
        for knapsack in greedy_knapsack(lengths, limits.max_tokens):
            packs.append([examples[length].pop() for length in knapsack])
    return packs


def trl_packs(sizes: ExampleSizes, limits: PackLimits) -> list[list[int]]:
    """TRL's `packing: true` (best-fit decreasing); every token of an example is its number."""
    # trl is imported after llamafactory: the other order fails with transformers 5.3 and later.
    import llamafactory.data  # noqa: F401, I001
    import datasets
    import pyarrow
    from trl.data_utils import pack_dataset

    offsets = np.concatenate([[0], np.cumsum(sizes.tokens)])
    tokens = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes.tokens)
    column = pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(tokens))
    data = datasets.Dataset(pyarrow.table({"input_ids": column}))
    datasets.disable_progress_bars()
    packed = pack_dataset(data, limits.max_tokens, "bfd", {"keep_in_memory": True}).with_format("arrow")
    table = packed[:]
    rows, lengths = table["input_ids"].combine_chunks(), table["seq_lengths"].combine_chunks()
    flat, row_starts = np.asarray(rows.flatten()), np.asarray(rows.offsets) - rows.offsets[0].as_py()
    return [
        flat[row_start + np.cumsum([0, *pack[:-1]])].tolist()
        for row_start, pack in zip(row_starts.tolist(), lengths.to_pylist(), strict=False)
    ]


def one_each(sizes: ExampleSizes, limits: PackLimits) -> list[list[int]]:
    return [[index] for index in range(len(sizes))]


def grouped_by_length(
    sizes: ExampleSizes, limits: PackLimits, num_ranks: int, micro_steps: int, seed: int
) -> PlanStatistics:
    """transformers' `group_by_length: true`, padded batches of 8 per rank."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    generator = torch.Generator().manual_seed(seed)
    order = get_length_grouped_indices(sizes.tokens.tolist(), PER_DEVICE_BATCH * micro_steps, generator=generator)
    row = PER_DEVICE_BATCH * num_ranks
    batches = np.array(order[: len(order) // row * row]).reshape(-1, PER_DEVICE_BATCH)
    plan = PackPlan(
        batches.ravel(),
        np.arange(len(batches) + 1) * PER_DEVICE_BATCH,
        np.zeros(len(batches), dtype=bool),
        num_ranks,
        micro_steps,
    )
    padded = sizes.tokens.copy()
    padded[batches] = sizes.tokens[batches].max(axis=1, keepdims=True)
    real = plan_statistics(plan, sizes, limits, COST)
    computed = plan_statistics(plan, replace(sizes, tokens=padded), limits, COST)
    fill = sizes.tokens[batches].sum() / padded[batches].sum()
    return replace(computed, fill=float(fill), order_bias=real.order_bias, cap_violations=real.cap_violations)


def streamed_plan(sizes: ExampleSizes, limits: PackLimits, num_ranks: int, micro_steps: int, seed: int) -> PackPlan:
    planner: StreamPlanner[int] = StreamPlanner(
        limits, num_ranks=num_ranks, micro_steps=micro_steps, cost=COST, seed=seed
    )
    stream = zip(range(len(sizes)), sizes.tokens.tolist(), sizes.patches.tolist(), strict=True)
    rows = list(planner.rows(stream))
    packs = [pack for row in rows for pack in row.packs]
    return PackPlan(
        indices=np.array([index for pack in packs for index in pack]),
        offsets=np.cumsum([0, *map(len, packs)]),
        idle=np.array([idle for row in rows for idle in row.idle]),
        num_ranks=num_ranks,
        micro_steps=micro_steps,
    )


def least_seconds(work: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """Least processor and least wall-clock seconds of several runs: other work on the machine only adds to them."""
    cpu, wall = [], []
    for _ in range(repetitions):
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return min(cpu), min(wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--micro-steps", type=int, default=4, help="micro-steps per optimizer step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20,000 examples, the long-CoT data only")
    arguments = parser.parse_args()
    from tqdm import tqdm

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    num_examples = 20_000 if arguments.quick else arguments.examples
    micro_steps, seed = arguments.micro_steps, arguments.seed
    cases = [("long CoT", capacity, ranks) for capacity in (16384, 32768) for ranks in (8, 64)]
    if not arguments.quick:
        cases += [(name, 16384, 8) for name in DISTRIBUTIONS if name != "long CoT"]
    packers = {"LLaMA-Factory greedy_knapsack": knapsack_packs, "TRL bfd": trl_packs, "one example": one_each}
    modes = {"ours, levelled": "levelled", "ours, fill": "fill"}
    names = [*modes, "ours, streamed", *packers, "group_by_length, padded"]

    results: dict[tuple[str, int, int], dict[str, PlanStatistics]] = {}
    packs: dict[tuple[str, int, str], list[list[int]]] = {}
    with tqdm(total=len(cases) * len(names), desc="Plans") as progress:
        for distribution, capacity, num_ranks in cases:
            sizes = draw_sizes(distribution, num_examples, seed)
            limits = PackLimits(capacity)
            table = results[distribution, capacity, num_ranks] = {}
            for name in names:
                if name in modes:
                    plan = plan_epoch(
                        sizes,
                        limits,
                        num_ranks=num_ranks,
                        micro_steps=micro_steps,
                        cost=COST,
                        seed=seed,
                        epoch=0,
                        mode=modes[name],
                    )
                elif name in packers:
                    key = (distribution, capacity, name)
                    if key not in packs:
                        packs[key] = packers[name](sizes, limits)
                    plan = shuffled_plan(packs[key], num_ranks, micro_steps, seed)
                elif name == "ours, streamed":
                    plan = streamed_plan(sizes, limits, num_ranks, micro_steps, seed)
                else:
                    table[name] = grouped_by_length(sizes, limits, num_ranks, micro_steps, seed)
                    progress.update()
                    continue
                table[name] = plan_statistics(plan, sizes, limits, COST)
                progress.update()

    million = draw_sizes("long CoT", TIMED_EXAMPLES, seed)
    limits = PackLimits(16384)
    options = {"num_ranks": 8, "micro_steps": micro_steps, "cost": COST, "seed": seed, "epoch": 1}
    seconds: dict[str, tuple[float, float]] = {}
    jobs: dict[str, Callable[[], object]] = {}
    for mode in ("levelled", "fill"):
        num_packs = number_of_packs(million, limits, num_ranks=8, mode=mode)
        jobs[f"ours, {mode}"] = lambda mode=mode, number=num_packs: plan_epoch(
            million, limits, mode=mode, num_packs=number, **options
        )
        jobs[f"ours, {mode}, with the number of packs (once per run)"] = lambda mode=mode: plan_epoch(
            million, limits, mode=mode, **options
        )
    jobs["LLaMA-Factory greedy_knapsack"] = lambda: knapsack_packs(million, limits)
    for name, job in tqdm(jobs.items(), desc="A million examples"):
        seconds[name] = least_seconds(job, 3 if arguments.quick else 7)

    libraries = ("numpy", "llamafactory", "trl", "transformers", "datasets")
    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, one used, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )
    print(f"{num_examples} examples, {micro_steps} micro-steps per optimizer step, cost model {COST}")
    for (distribution, capacity, num_ranks), table in results.items():
        print(f"\n{distribution}, capacity {capacity}, {num_ranks} ranks")
        print(
            f"{'':<32}{'packs':>8}{'fill':>8}{'wait %':>9}{'phases %':>10}{'per step %':>12}{'H':>9}"
            f"{'patches':>9}{'most':>8}"
        )
        for name, found in table.items():
            print(
                f"{name:<32}{found.num_packs:>8}{found.fill:>8.4f}{100 * found.bubble_micro:>9.2f}"
                f"{100 * found.bubble_phase:>10.2f}{100 * found.bubble_step:>12.2f}{found.order_bias:>9.2f}"
                f"{found.patches_per_pack_mean:>9.0f}{found.patches_per_pack_max:>8}"
            )
    print(f"\n{TIMED_EXAMPLES} examples, 8 ranks: least of several runs on one core")
    print(f"{'':<56}{'processor s':>12}{'wall s':>9}")
    for name, (cpu, wall) in seconds.items():
        print(f"{name:<56}{cpu:>12.2f}{wall:>9.2f}")

    main_case, case_64 = results["long CoT", 16384, 8], results["long CoT", 16384, 64]
    ours, knapsack, trl = (main_case[name] for name in names if name in ("ours, levelled", *list(packers)[:2]))
    whole = "with the number of packs (once per run)"
    figures = {
        "bubble_micro": round(100 * ours.bubble_micro, 3),
        "bubble_phase": round(100 * ours.bubble_phase, 3),
        "bubble_micro_64": round(100 * case_64["ours, levelled"].bubble_micro, 3),
        "bubble_phase_64": round(100 * case_64["ours, levelled"].bubble_phase, 3),
        "order_bias": round(ours.order_bias, 3),
        "fill": round(ours.fill, 4),
        "fill_mode_fill": round(main_case["ours, fill"].fill, 4),
        "streamed_bubble_micro": round(100 * main_case["ours, streamed"].bubble_micro, 3),
        "seconds_1m": round(seconds[f"ours, levelled, {whole}"][0], 2),
        "seconds_1m_fill": round(seconds[f"ours, fill, {whole}"][0], 2),
        "seconds_1m_next_epoch": round(seconds["ours, levelled"][0], 2),
        "seconds_1m_fill_next_epoch": round(seconds["ours, fill"][0], 2),
        "cap_violations": sum(
            table[name].cap_violations for table in results.values() for name in names if name.startswith("ours")
        ),
        "llamafactory_seconds_1m": round(seconds["LLaMA-Factory greedy_knapsack"][0], 2),
    }
    for prefix, found, found_64 in (
        ("llamafactory", knapsack, case_64["LLaMA-Factory greedy_knapsack"]),
        ("trl", trl, case_64["TRL bfd"]),
    ):
        figures[f"{prefix}_bubble_micro"] = round(100 * found.bubble_micro, 2)
        figures[f"{prefix}_bubble_phase"] = round(100 * found.bubble_phase, 2)
        figures[f"{prefix}_bubble_micro_64"] = round(100 * found_64.bubble_micro, 2)
        figures[f"{prefix}_order_bias"] = round(found.order_bias, 2)
        figures[f"{prefix}_fill"] = round(found.fill, 4)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
