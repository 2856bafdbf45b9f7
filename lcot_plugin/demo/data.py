"""Write the embedded data sets: `python -m lcot_plugin.demo.data --output DIR`.

Out: four parquet files, the content of `lcot_plugin/demo/data`, listed in `dataset_info/dataset_info.json`:

| file | columns | used by |
|---|---|---|
| sft_long.parquet | images, problem, response (thought, then answer), answer | SFT |
| sft_short.parquet | the same problems, response is the answer alone | SFT without a thought, to compare |
| rl.parquet | images, problem, answer | GRPO |
| test.parquet | images, problem, answer | evaluation |

No expression occurs twice, within a set or across sets (the two SFT sets share theirs).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcot_plugin.demo.task import NUM_OPERANDS, QUESTION, Problem, generate

DATA_DIR = Path(__file__).parent / "data"
"""The shipped sets."""

SET_SIZES = {"test": 400, "rl": 2000, "sft": 1200}
"""Problems per set, in the order in which they are drawn."""

SET_OPERANDS = {
    "sft": (3,) * 64 + (4,) * 34 + (5, 6),
    "rl": (3,) + (4,) + (5,) * 4 + (6,) * 4,
}
"""Number of operands, where it is not uniform. Worked solutions are mostly of the short problems, as they are wherever
someone has to write them: SFT then leaves the long ones half done. RL needs answers only, and is given mostly those."""

SEED = 31337

DEVELOPMENT_SEED = 20240
"""Of the sets on which the base weights were made and the mix and the recipes were chosen. The shipped sets were drawn
afterwards, so that no choice was made by looking at the shipped test set."""


def build_sets(sizes: Mapping[str, int] = SET_SIZES, seed: int = SEED) -> dict[str, list[Problem]]:
    """Generate the problems of every set, disjoint in their expressions. A set keeps its problems when a later one
    is resized."""
    sets: dict[str, list[Problem]] = {}
    taken: set[str] = set()
    for offset, (name, size) in enumerate(sizes.items()):
        sets[name] = generate(size, seed + offset, taken, SET_OPERANDS.get(name, NUM_OPERANDS))
        taken |= {problem.expression for problem in sets[name]}
    return sets


def records_of(problems: list[Problem], response: str | None = None) -> list[dict[str, Any]]:
    """Rows of a parquet file; `response` is "long", "short" or None for no response column."""
    records = []
    for number, problem in enumerate(problems):
        record: dict[str, Any] = {
            "images": [{"bytes": _png(problem), "path": f"{number:05d}.png"}],
            "problem": f"<image>{QUESTION}",
        }
        if response is not None:
            record["response"] = problem.long_response if response == "long" else problem.short_response
        record["answer"] = problem.answer
        records.append(record)
    return records


def write_sets(output: Path) -> None:
    """Write the four files into `output`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sets = build_sets()
    files = {
        "sft_long": records_of(sets["sft"], "long"),
        "sft_short": records_of(sets["sft"], "short"),
        "rl": records_of(sets["rl"]),
        "test": records_of(sets["test"]),
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    output.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        schema = pa.schema([(column, pa.list_(image) if column == "images" else pa.string()) for column in records[0]])
        pq.write_table(pa.Table.from_pylist(records, schema=schema), output / f"{name}.parquet")


def _png(problem: Problem) -> bytes:
    buffer = io.BytesIO()
    problem.image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the embedded data sets.")
    parser.add_argument("--output", type=Path, default=DATA_DIR, help="folder to write the parquet files into")
    write_sets(parser.parse_args().output)


if __name__ == "__main__":
    main()
