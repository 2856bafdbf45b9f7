"""Peak memory of reading and tokenising a large text data set with this plugin.

    python benchmarks/memory.py [--records 1000000] [--workers 1] [--quick] [--folder saves/bench_memory]

Each size runs in a fresh process; memory is what the process and its children have allocated (Linux's "Anonymous" in
smaps_rollup): pages of the memory-mapped data set are the system's to take back and are not counted. The last line is
JSON. Results are kept in benchmarks/results/memory.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def write_records(path: Path, num_records: int) -> None:
    from tqdm import tqdm

    generator = random.Random(0)
    with path.open("w") as file:
        for index in tqdm(range(num_records), desc="Writing records", unit_scale=True):
            left, right = generator.randrange(1000), generator.randrange(1000)
            thought = f"First I add {left} and {right}. " + "Then I check the carry. " * generator.randrange(1, 12)
            record = {
                "messages": [
                    {"role": "user", "content": f"Problem {index}: what is {left} plus {right}?"},
                    {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n\\boxed{{{left + right}}}"},
                ]
            }
            file.write(json.dumps(record) + "\n")


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        import psutil

        process = psutil.Process()
        while not self.done.wait(0.1):
            total = 0
            for one in [process, *process.children(recursive=True)]:
                try:
                    total += anonymous_bytes(one.pid)
                except (psutil.Error, OSError):
                    continue  # it has just ended
            self.peak = max(self.peak, total)


def anonymous_bytes(pid: int) -> int:
    """Memory that a process has allocated."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def run_side(folder: Path, workers: int) -> None:
    from lcot_plugin.activation import activate

    activate()
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    recipe = {
        "model_name_or_path": str(folder / "model"),
        "template": "qwen2_vl",
        "stage": "sft",
        "do_train": True,
        "dataset": "records",
        "dataset_dir": str(folder),
        "preprocessing_num_workers": workers,
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "use_cpu": True,
    }
    model_args, data_args, training_args, _, _ = get_train_args(recipe)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    memory = PeakMemory()
    memory.start()
    started = time.perf_counter()
    dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    seconds = time.perf_counter() - started
    memory.done.set()
    memory.join()
    result = {"seconds": seconds, "peak_mb": memory.peak / 2**20, "rows": len(dataset)}
    (folder / "side.json").write_text(json.dumps(result))


def measure(folder: Path, num_records: int, workers: int) -> dict[str, float]:
    import twins

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_records(folder / "records.jsonl", num_records)
    info = {"records": {"file_name": "records.jsonl", "formatting": "lcot_auto"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    twins.build_twin("qwen2_5_vl", folder / "model")
    environment = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--side", "--workers", str(workers), "--folder", str(folder)]
    subprocess.run(command, env=environment, check=True)
    result = json.loads((folder / "side.json").read_text())
    assert result["rows"] == num_records, result
    shutil.rmtree(folder)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("saves/bench_memory"))
    parser.add_argument("--quick", action="store_true", help="10,000 records")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.side:
        run_side(folder, arguments.workers)
        return
    largest = 10_000 if arguments.quick else arguments.records
    sizes = (largest // 10, largest)
    results = {size: measure(folder, size, arguments.workers) for size in sizes}
    print(f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"{'records':>12}{'peak MB':>10}{'seconds':>10}{'records/s':>12}")
    for size, result in results.items():
        print(f"{size:>12,}{result['peak_mb']:>10.0f}{result['seconds']:>10.1f}{size / result['seconds']:>12.0f}")
    figures = {
        "records": largest,
        "peak_mb": round(results[largest]["peak_mb"]),
        "peak_mb_at_a_tenth": round(results[sizes[0]]["peak_mb"]),
        "seconds": round(results[largest]["seconds"], 1),
        "workers": arguments.workers,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
