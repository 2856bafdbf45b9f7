"""From a JSON file and JPEG pictures to a tokenised data set: LLaMA-Factory alone, and with this plugin.

    python benchmarks/preprocess.py [--records 5000] [--workers 1] [--quick] [--folder saves/bench_preprocess]

Pictures of 1 to 2 megapixels are drawn, one per record; each side then loads and tokenises the same long-CoT data set
with the same processor in a fresh process with an empty cache, and only `get_dataset` is timed; our side runs a second
time with the cache that its first run left. Every record that LLaMA-Factory neither cuts nor loses must have the same
token ids and labels on both sides. The last line is JSON. Results are kept in benchmarks/results/preprocess.md.
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
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

CUTOFF_LEN = 4096
OVERLONG_SHARE = 0.02
WORDS = (
    "so we first look at the picture and count each side then the angle between them is given which means that the "
    "total area equals half of the base times the height therefore wait let me check this step again"
)


def draw(job: tuple[Path, int]) -> None:
    """One JPEG of 1 to 2 megapixels with the detail of a photograph, so that decoding costs what it usually does."""
    from PIL import Image

    path, seed = job
    generator = random.Random(seed)
    pixels, ratio = generator.uniform(1.0e6, 2.0e6), generator.uniform(0.5, 2.0)
    width = int((pixels * ratio) ** 0.5)
    size = (width, int(pixels / width))
    noise = Image.frombytes(
        "RGB", (size[0] // 8, size[1] // 8), generator.randbytes(3 * (size[0] // 8) * (size[1] // 8))
    )
    noise.resize(size, Image.Resampling.BICUBIC).save(path, quality=88)


def write_data(folder: Path, num_records: int, workers: int) -> None:
    from tqdm import tqdm

    (folder / "images").mkdir(parents=True, exist_ok=True)
    jobs = [(folder / "images" / f"{index}.jpg", index) for index in range(num_records)]
    with ProcessPoolExecutor(workers) as pool:
        list(tqdm(pool.map(draw, jobs, chunksize=16), total=num_records, desc="Drawing pictures"))
    generator = random.Random(0)
    records = []
    for index in range(num_records):
        num_words = 6000 if generator.random() < OVERLONG_SHARE else int(generator.lognormvariate(5.3, 0.6))
        thought = " ".join(generator.choices(WORDS.split(), k=num_words))
        answer = generator.randrange(100)
        records.append(
            {
                "problem": f"<image>What is the area of figure {index}?",
                "images": [f"images/{index}.jpg"],
                "response": f"<think>\n{thought}\n</think>\n\nThe area is \\boxed{{{answer}}}.",
            }
        )
    (folder / "records.json").write_text(json.dumps(records))
    columns = {"prompt": "problem", "response": "response", "images": "images"}
    info = {"records": {"file_name": "records.json", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def build_model(folder: Path) -> Path:
    """Processor and tokenizer of Qwen2.5-VL's classes and real picture limits; the weights are never loaded."""
    import twins
    from transformers import AutoProcessor

    twins.build_twin("qwen2_5_vl", folder)
    processor = AutoProcessor.from_pretrained(folder)
    limits = {"shortest_edge": 56 * 56, "longest_edge": 12845056}  # of Qwen2.5-VL-3B-Instruct, in pixels
    processor.image_processor.size = limits
    processor.save_pretrained(folder)
    assert AutoProcessor.from_pretrained(folder).image_processor.size["longest_edge"] == limits["longest_edge"]
    return folder


def run_side(folder: Path, workers: int) -> None:
    """Child process: times `get_dataset` and writes the tokens."""
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
        "cutoff_len": CUTOFF_LEN,
        "preprocessing_num_workers": workers,
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "use_cpu": True,
    }
    model_args, data_args, training_args, _, _ = get_train_args(recipe)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    started = time.perf_counter()
    dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    seconds = time.perf_counter() - started
    paths = [image[0] if isinstance(image[0], str) else image[0]["path"] for image in dataset["images"]]
    rows = {
        Path(path).name: [ids, labels]
        for path, ids, labels in zip(paths, dataset["input_ids"], dataset["labels"], strict=True)
    }
    (folder / "side.json").write_text(json.dumps({"seconds": seconds, "rows": rows}))


def side(folder: Path, name: str, workers: int, cache: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "LCOT_PLUGIN": "1" if name.startswith("lcot") else "0",
        "HF_HOME": str(cache),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    print(f"\n--- {name}", flush=True)
    command = [sys.executable, __file__, "--side", name, "--workers", str(workers), "--folder", str(folder)]
    subprocess.run(command, env=environment, check=True)
    return json.loads((folder / "side.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenise, on either side")
    parser.add_argument("--folder", type=Path, default=Path("saves/bench_preprocess"))
    parser.add_argument("--quick", action="store_true", help="100 records")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    if arguments.side:
        if arguments.side.startswith("lcot"):
            from lcot_plugin.activation import activate

            activate()
        run_side(folder, arguments.workers)
        return

    shutil.rmtree(folder, ignore_errors=True)
    num_records = 100 if arguments.quick else arguments.records
    write_data(folder, num_records, os.cpu_count() or 1)
    build_model(folder / "model")
    theirs = side(folder, "llamafactory", arguments.workers, folder / "cache_llamafactory")
    ours = side(folder, "lcot", arguments.workers, folder / "cache_lcot")
    again = side(folder, "lcot, second run", arguments.workers, folder / "cache_lcot")

    # A record as long as cutoff_len was cut by LLaMA-Factory.
    right = {name: row for name, row in theirs["rows"].items() if len(row[0]) < CUTOFF_LEN}
    compared = [name for name in right if name in ours["rows"]]
    identical = sum(right[name] == ours["rows"][name] for name in compared)
    cut = len(theirs["rows"]) - len(right)
    figures = {
        "speedup": round(theirs["seconds"] / ours["seconds"], 1),
        "identical_records": identical,
        "compared_records": len(compared),
        "records": num_records,
        "records_cut_by_llamafactory": cut,
        "records_left_out_and_counted_by_lcot": num_records - len(ours["rows"]),
        "seconds_llamafactory": round(theirs["seconds"], 2),
        "seconds_lcot": round(ours["seconds"], 2),
        "seconds_lcot_second_run": round(again["seconds"], 2),
        "workers": arguments.workers,
    }
    libraries = ("llamafactory", "transformers", "datasets", "pillow", "torch")
    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in libraries)
    )
    print(f"{num_records} records, one JPEG of 1 to 2 megapixels each, {arguments.workers} process(es)")
    print(f"{'':<24}{'seconds':>10}{'ms per record':>16}{'records':>10}")
    for name, result in (("LLaMA-Factory", theirs), ("lcot-plugin", ours), ("lcot-plugin, 2nd run", again)):
        per_record = 1000 * result["seconds"] / num_records
        print(f"{name:<24}{result['seconds']:>10.2f}{per_record:>16.2f}{len(result['rows']):>10}")
    print(f"{cut} records were cut by LLaMA-Factory; of the {len(right)} others {identical} have identical tokens.")
    shutil.rmtree(folder)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
