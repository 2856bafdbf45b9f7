"""The shipped dataset_info.json: its entries fit their formats, and every public set has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.public_sets import BENCHMARKS, PUBLIC_SETS, PublicSet

from lcot_plugin.data.formats import PREFIX, get_format

PATH = Path(__file__).resolve().parents[2] / "dataset_info" / "dataset_info.json"
SETS = PUBLIC_SETS | BENCHMARKS
ENTRIES: dict[str, dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))
PUBLIC = {name: entry for name, entry in ENTRIES.items() if not name.startswith("demo_")}
KEYS = {"hf_hub_url", "hub_id", "file_name", "subset", "split", "folder", "formatting", "columns", "license", "note"}


def test_no_name_is_there_twice() -> None:
    names: list[str] = []
    json.loads(PATH.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: names.extend(k for k, _ in pairs))
    assert len([name for name in names if name in ENTRIES]) == len(ENTRIES) >= 40


@pytest.mark.parametrize("name", PUBLIC)
def test_entry(name: str) -> None:
    entry = PUBLIC[name]
    assert entry.keys() <= KEYS
    assert entry["formatting"].startswith(PREFIX)
    assert entry.get("columns", {}).keys() <= get_format(entry["formatting"]).roles.keys()
    assert entry["license"]
    assert ("hf_hub_url" in entry) != ("file_name" in entry)
    hub_id = entry.get("hf_hub_url") or entry["hub_id"]
    assert len(hub_id.split("/")) == 2
    if "file_name" in entry:  # LLaMA-Factory looks for it beside dataset_info.json
        assert "media_dir" in entry["note"]
        assert not Path(entry["file_name"]).is_absolute()


@pytest.mark.parametrize("name", [name for name, data_set in SETS.items() if data_set.hub_id])
def test_public_set_has_its_entry(name: str) -> None:
    data_set = SETS[name]
    entry = ENTRIES[data_set.entry_name]
    assert (entry.get("hf_hub_url") or entry["hub_id"]) == data_set.hub_id
    assert entry["formatting"] == data_set.formatting
    assert data_set.columns.items() <= entry.get("columns", {}).items()


def test_every_entry_has_a_public_set() -> None:
    covered = {data_set.hub_id for data_set in SETS.values()}
    assert {entry.get("hf_hub_url") or entry["hub_id"] for entry in PUBLIC.values()} <= covered


@pytest.mark.parametrize("data_set", SETS.values(), ids=lambda data_set: data_set.name)
def test_plain_entry_names_columns_that_the_file_has(data_set: PublicSet, tmp_path: Path) -> None:
    entry = data_set.write(tmp_path)
    plain = data_set.plain_entry()
    assert plain["file_name"] == entry["file_name"]
    assert plain.get("formatting", "alpaca") in ("alpaca", "sharegpt", "openai")
    assert set(plain["columns"].values()) <= set(data_set.read(tmp_path)[0])


def test_llamafactory_reads_the_entries() -> None:
    from llamafactory.data.parser import get_dataset_list

    attributes = get_dataset_list(list(ENTRIES), str(PATH.parent))
    for (name, entry), attribute in zip(ENTRIES.items(), attributes, strict=True):
        assert attribute.load_from == ("hf_hub" if "hf_hub_url" in entry else "file"), name
        assert attribute.formatting == entry.get("formatting", "alpaca")
        assert attribute.split == entry.get("split", "train")
        assert attribute.subset == entry.get("subset")
