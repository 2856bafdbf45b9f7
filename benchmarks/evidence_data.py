"""The SFT sets of benchmarks/evidence.py: the embedded task with other solutions, other amounts, other difficulty.

In: nothing but `lcot_plugin.demo.task`. Out: parquet files and dataset_info.json in a folder. No expression of the
shipped RL and test sets occurs in any of them; those two are used as they are shipped.

| set | records | operands | what is taught |
|---|---|---|---|
| long | 1,200 | shipped: 98 % of 3 and 4 | picture, long chain of thought |
| short | 1,200 | the same problems | picture, the answer alone |
| text | 1,200 | the same problems | the expression as text, no picture, long chain of thought |
| quarter | 300 | the first of `long` | a quarter of the data, as many steps |
| easy | 1,200 | 3 | picture, long chain of thought |
| hard | 1,200 | 5 and 6 | picture, long chain of thought |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lcot_plugin.demo.data import SET_SIZES, build_sets, records_of
from lcot_plugin.demo.task import QUESTION, Problem, generate

OPERANDS = {"easy": (3,), "hard": (5, 6)}
SEED = 51_000
SETS = ("long", "short", "text", "quarter", "easy", "hard")


def text_only(problems: list[Problem]) -> list[dict[str, Any]]:
    """The expression in place of its picture."""
    return [
        {"problem": f"{problem.expression}\n{QUESTION}", "response": problem.long_response, "answer": problem.answer}
        for problem in problems
    ]


def write_sets(folder: Path) -> None:
    """All sets with their dataset_info.json. Returns at once where they are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = folder / "dataset_info.json"
    if info.exists():
        return
    shipped = build_sets()
    taken = {problem.expression for problems in shipped.values() for problem in problems}
    drawn = {}
    for offset, (name, operands) in enumerate(OPERANDS.items()):
        # Chains of 3 operands are few: the shipped SFT set's may come again, those of RL and test may not.
        excluded = taken if name != "easy" else {p.expression for s in ("rl", "test") for p in shipped[s]}
        drawn[name] = generate(SET_SIZES["sft"], SEED + offset, excluded, operands)
        assert not {p.expression for p in drawn[name]} & {p.expression for s in ("rl", "test") for p in shipped[s]}
    sets = {
        "long": records_of(shipped["sft"], "long"),
        "short": records_of(shipped["sft"], "short"),
        "text": text_only(shipped["sft"]),
        "quarter": records_of(shipped["sft"][:300], "long"),
        **{name: records_of(problems, "long") for name, problems in drawn.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    entries = {}
    for name, records in sets.items():
        columns = list(records[0])
        schema = pa.schema([(column, pa.list_(image) if column == "images" else pa.string()) for column in columns])
        pq.write_table(pa.Table.from_pylist(records, schema=schema), folder / f"{name}.parquet")
        names = {"prompt": "problem", "response": "response", "images": "images"}
        entries[name] = {
            "file_name": f"{name}.parquet",
            "columns": {key: value for key, value in names.items() if value in columns},
        }
    info.write_text(json.dumps(entries, indent=2) + "\n")
