"""Small stand-ins of the public data sets, in their exact schemas; contents and pictures are made here.

entry = PUBLIC_SETS["geometry3k"].write(folder)   # the file and its pictures; entry for dataset_info.json
"""

from __future__ import annotations

from data.public_sets_benchmarks import BENCHMARK_SETS
from data.public_sets_choices import CHOICE_SETS
from data.public_sets_rl import RL_SETS
from data.public_sets_sft import SFT_SETS
from data.public_sets_traces import TRACE_SETS
from data.set_fixtures import Expected, PublicSet

__all__ = ["BENCHMARKS", "PUBLIC_SETS", "Expected", "PublicSet"]

PUBLIC_SETS: dict[str, PublicSet] = {
    data_set.name: data_set for data_set in (*SFT_SETS, *TRACE_SETS, *RL_SETS, *CHOICE_SETS)
}

BENCHMARKS: dict[str, PublicSet] = {data_set.name: data_set for data_set in BENCHMARK_SETS}
"""For evaluation; their columns need names, which `lcot_auto` does not guess."""
