import pytest
import torch
from policy_rows import arguments

from lcot_plugin.errors import ArgumentError
from lcot_plugin.policy.advantages import (
    ADVANTAGES,
    RewardTable,
    compute_advantages,
    get_advantage,
    register_advantage,
    unregister_advantage,
)

SOURCE = """
import torch

def best_only(table, settings):
    return (table.totals == table.totals.nan_to_num(-torch.inf).amax(-1, keepdim=True)).float()

def raw(table, settings):
    return table.totals

def broken(table, settings):
    return table.totals / 0.0

def first_part(table, settings):
    return table.parts[..., 0] if settings.scale_rewards == "none" else table.parts
"""
TOTALS = torch.tensor([[1.0, 0.5, float("nan")], [0.2, 0.2, 0.1]])
TABLE = RewardTable(TOTALS, torch.stack([TOTALS, TOTALS], -1), torch.tensor([0.5, 0.5]))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_an_estimator_from_a_file(file):
    assert compute_advantages(arguments(advantage=f"{file}:best_only"), TABLE).tolist() == [[1, 0, 0], [1, 1, 0]]
    raw = compute_advantages(arguments(advantage=f"{file}:raw"), TABLE)
    torch.testing.assert_close(raw, TOTALS.nan_to_num(0.0))


def test_the_settings_reach_it(file):
    spec = f"{file}:first_part"
    assert compute_advantages(arguments(advantage=spec, scale_rewards="none"), TABLE).shape == (2, 3)
    with pytest.raises(ArgumentError, match=r"shape \[2, 3, 2\]; return one advantage per completion, \[2, 3\]"):
        compute_advantages(arguments(advantage=spec), TABLE)


def test_infinity_is_refused(file):
    with pytest.raises(ArgumentError, match="NaN or infinity"):
        compute_advantages(arguments(advantage=f"{file}:broken"), TABLE)


def test_a_registered_estimator():
    register_advantage("raw", lambda table, settings: table.totals)
    try:
        assert compute_advantages(arguments(advantage="raw"), TABLE)[0].tolist() == [1.0, 0.5, 0.0]
        with pytest.raises(ArgumentError, match=r"'raw' already; .* unregister_advantage\('raw'\)"):
            register_advantage("raw", lambda table, settings: table.totals)
    finally:
        unregister_advantage("raw")
    assert "raw" not in ADVANTAGES
    with pytest.raises(ArgumentError, match="unknown estimator 'raw'"):
        unregister_advantage("raw")


@pytest.mark.parametrize("name", ["", "a.py:b"])
def test_a_name_must_not_read_as_a_file(name: str):
    with pytest.raises(ArgumentError, match="cannot name an advantage"):
        register_advantage(name, lambda table, settings: table.totals)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reinforce", "unknown estimator 'reinforce'; did you mean 'reinforce_pp'.* Known: group, rloo"),
        ("{file}:missing", "has no function 'missing'; it defines best_only, broken"),
        ("nowhere.py:missing", r"advantage file .*nowhere\.py does not exist"),
    ],
)
def test_what_cannot_be_found_is_told(spec: str, message: str, file):
    with pytest.raises(ArgumentError, match=message):
        get_advantage(spec.format(file=file))
