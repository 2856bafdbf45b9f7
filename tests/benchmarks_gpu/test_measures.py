"""What runs on a GPU in the real shapes runs here on tiny models: the measuring code, then whole parts of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import grpo, kernels, rollouts, run, sft
from benchmarks.gpu.cells import OK
from benchmarks.gpu.shapes import TINY, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench_gpu")
    for shape in TINY:
        build(root / "models", shape)
    return root


@pytest.mark.parametrize("kind", kernels.KINDS)
def test_steps_are_profiled(folder, kind):
    [job] = [cell.job for cell in kernels.cells(folder, "cpu", quick=True) if cell.job["kind"] == kind]
    result = kernels.measure(job)
    assert result["num_kernels"] > 100 and result["busy"] > 0
    assert result["families"]["matrix products"] > 0
    assert (result["operations"] > 0) != (kind == "decode")
    assert (result["least_bytes"] > 0) == (kind == "decode")
    assert result["allocated"] == result["reserved"] == 0, "a CPU's memory is not measured"


@pytest.mark.parametrize("side", ["ours", "batch", "generate"])
def test_rollouts_write_what_is_asked_for(folder, side):
    [job] = [cell.job for cell in rollouts.cells(folder, "cpu", quick=True) if cell.job["side"] == side]
    result = rollouts.measure(job)
    assert result["tokens"] == sum(map(sum, job["lengths"]))
    assert len(result["seconds"]) == job["repeats"]
    # At least the weights of two layers, in float32, for every token of the longest completion.
    assert result["least_bytes"] > 4 * 2 * 3 * 128 * 256 * max(map(max, job["lengths"]))


def test_a_grpo_update_and_its_optimizer_step(folder):
    [job] = [cell.job for cell in grpo.cells(folder, "cpu", quick=True) if cell.name.endswith("update_ours")]
    result = grpo.measure(job)
    assert len(result["seconds"]) == 1 and len(result["optimizer_seconds"]) == 3
    assert result["tokens"] == sum(map(sum, grpo.QUICK.lengths()))
    rolled_out = [cell.job["rollout"] for cell in grpo.cells(folder, "cpu", quick=True) if "rollout" in cell.job]
    assert all(job["lengths"] == grpo.QUICK.lengths() for job in rolled_out), "what is updated on is what was written"


@pytest.mark.slow
def test_parts_that_train_through_llama_factory(tmp_path):
    """As a user starts them, every cell in a process of its own."""
    options = ["sft", "doctor", "--quick", "--device", "cpu", "--output", str(tmp_path)]
    done = subprocess.run([sys.executable, run.__file__, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["cells"] == {OK: len(run.cells_of(run.parse(options), tmp_path))}
    assert len(line["sft"]["tokens_per_second"]) == len(sft.SIDES)
    assert set(line["doctor"]["estimate_off_by"].values()) == {None}, "a CPU's memory is not measured"
    text = (tmp_path / "quick" / "results.md").read_text()
    assert "## SFT" in text and "## Doctor" in text and "No figure means anything" in text
