"""docs/families.md says what the tests run, no more and no less."""

from __future__ import annotations

from typing import Any

import pytest
from families.runs import FAMILIES, TWINS, load
from families.support import BEGIN, DOCUMENT, END, recipe, table

from lcot_plugin.packing.families import why_not_packable


def test_the_table_is_that_of_the_tests() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert found == table(), "put the output of `python tests/families/support.py` between the two comments"


@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_pack_what_can_be_packed(family: str, twin: Any) -> None:
    reason = why_not_packable(load(twin(TWINS[family])))
    for stage in ("sft", "sft_full"):
        assert recipe(family, stage)["length_aware_packing"] is (reason is None), reason
    for stage in ("grpo", "grpo_full"):
        assert ("grpo_update_layout" in recipe(family, stage)) is (reason is not None), reason


def test_every_family_and_template_is_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for family in TWINS:
        shipped = recipe(family, "sft")
        assert shipped["template"] in text
        assert shipped["model_name_or_path"] in text
