"""The table of docs/families.md, made from what the tests run on. Prints it: `python tests/families/support.py`.

A cell says `yes` where a test of this repository runs that family's twin that way, the reason where the code refuses
it, and `not tested` otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import yaml
from families.runs import ON_5_ONLY, RECIPES, ROOT, TWINS

DOCUMENT = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- support table: begin -->", "<!-- support table: end -->"
COLUMNS = (
    *("recipes", "model", "transformers", "SFT packed", "GRPO packed", "LoRA", "full", "freezing", "QLoRA", "vLLM"),
    "video",
)
NOT_TESTED = "not tested"


def recipe(family: str, stage: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / family / f"{stage}.yaml").read_text())


def row(family: str) -> list[str]:
    """The cells of a family, a folder of yaml_recipes."""
    from integration import test_packed_families, test_packed_groups
    from real_vllm import test_real_families, test_real_vllm  # need no vLLM to be imported

    twin = TWINS[family]
    architecture = twin.removesuffix("_thinking")  # another chat template
    packs = recipe(family, "sft")["length_aware_packing"]
    groups = "grpo_update_layout" not in recipe(family, "grpo")
    vllm = {*test_real_vllm.FAMILIES, *test_real_families.FAMILIES}
    cells = [
        f"`{family}`",
        recipe(family, "sft")["model_name_or_path"],
        "5.5.4" if family in ON_5_ONLY else "4.57.6, 5.5.4",
        ("yes" if architecture in test_packed_families.FAMILIES else NOT_TESTED) if packs else "no",
        ("yes" if architecture in test_packed_groups.FAMILIES else NOT_TESTED) if groups else "rows",
        "yes",  # test_families.test_lora, for every family
        "yes",  # test_families.test_full
        "yes",  # test_families.test_full, test_a_tower_that_is_not_frozen
        "yes",  # test_qlora.test_qlora
        "yes" if twin in vllm else test_real_families.NOT_SERVED.get(twin, NOT_TESTED),
        "SFT" if architecture in test_packed_families.MROPE else NOT_TESTED,
    ]
    assert len(cells) == len(COLUMNS)
    return cells


def table() -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(row(family) for family in TWINS)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


if __name__ == "__main__":
    print(table())
