"""Image tokens counted from headers against those LLaMA-Factory counts by decoding, for every known image processor.

    python benchmarks/token_counts.py [--quick] [--sizes 1000] [--seed 0] [--max-pixels 500000]
                                      [--families Qwen SmolVLM ...]

Each family gets images of random sizes (extreme aspect ratios, exact multiples, up to --max-pixels) under varying
image_max_pixels, and LLaMA-Factory's plugin writes the prompt twice: from the image and from its header. Prints a table
with the differences and the time of both per image; the last line is JSON. `--quick`: 25 sizes, under a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from image_processors import FAMILIES, REFUSED, encode, random_sizes
from tqdm import tqdm

from lcot_plugin.integration.token_counting import without_pixels
from lcot_plugin.render.headers import read_header

BUDGETS = [768 * 768, 256 * 256, 1024 * 1024, 2_000_000]
"""image_max_pixels: LLaMA-Factory's default, smaller and larger ones, in turn."""


def compare(family: str, sizes: list[tuple[int, int]]) -> dict[str, float]:
    """Differences, refused sizes and the seconds of both ways."""
    case = FAMILIES[family]()
    result = {"differences": 0, "refused": 0, "decoding": 0.0, "headers": 0.0}
    for index, size in enumerate(tqdm(sizes, desc=family, leave=False)):
        contents = encode(size)
        case.processor.image_max_pixels = BUDGETS[index % len(BUDGETS)]
        counting = without_pixels(case.processor)
        start = time.perf_counter()
        real = case.text([contents], case.processor)
        middle = time.perf_counter()
        try:
            counted = case.text([read_header(contents)], counting)
        except Exception as error:
            counted = f"{type(error).__name__}: {error}"
        result["decoding"] += middle - start
        result["headers"] += time.perf_counter() - middle
        result["refused"] += real == REFUSED
        if real != counted:
            result["differences"] += 1
            tqdm.write(f"{family}, {size[0]} x {size[1]}: {real[:100]!r} and {counted[:100]!r}", file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-pixels", type=int, default=500_000, help="of an image; decoding takes the time")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), help="names or parts of names; default all")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num, max_pixels = (25, 200_000) if arguments.quick else (arguments.sizes, arguments.max_pixels)
    sizes = random_sizes(num, arguments.seed, max_pixels)
    # LLaVA resizes the shorter side, so that a line of pixels becomes a very long image: seconds and gigabytes each.
    milder = [size if max(size) / min(size) < 20 else (size[0] + size[1], max(size)) for size in sizes]
    results = {}
    for family in tqdm(
        [name for name in FAMILIES if any(part in name for part in arguments.families)], desc="families"
    ):
        results[family] = compare(family, milder if family.startswith("LLaVA") else sizes)
    print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "llamafactory", "pillow"))
    )
    print(f"{'family':<38}{'sizes':>6}{'differences':>13}{'refused':>9}{'decoding':>13}{'headers':>12}")
    for family, result in results.items():
        per_image = [result[way] / len(sizes) * 1000 for way in ("decoding", "headers")]
        print(
            f"{family:<38}{len(sizes):>6}{result['differences']:>13}{result['refused']:>9}"
            f"{per_image[0]:>10.2f} ms{per_image[1]:>9.3f} ms"
        )
    differences = sum(result["differences"] for result in results.values())
    print(json.dumps({"families": len(results), "sizes_per_family": len(sizes), "differences": differences}))
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
