"""What is made of figures: tables with rows for what is missing, kernels from a trace, the result file."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import doctor, grpo, kernels, rollouts, run, sft
from benchmarks.gpu.cells import MISSING, OK, OUT_OF_MEMORY
from benchmarks.gpu.roofline import Peak
from benchmarks.gpu.tables import spread

TOP = Peak(operations=1e14, bandwidth=1e12, source="a sheet")
GPU = {
    "name": "NVIDIA H100 80GB HBM3",
    "device": "cuda",
    "gib": 79.6,
    "cuda": "13.0",
    "driver": "580.65",
    **dict.fromkeys(
        ("python", "torch", "transformers", "llamafactory", "trl", "flash-attn", "liger-kernel", "lcot-plugin"), "1.0"
    ),
    "measured": {"operations": 7e14, "bandwidth": 3e12, "source": "measured here"},
}
SFT = {"status": OK, "seconds": [2.0, 4.0], "tokens": [400, 600], "operations": [1e14, 2e14], "attention": "sdpa"}
SFT |= {"allocated": 3 * 2**30, "reserved": 4 * 2**30, "liger": False, "loader_workers": 4}


def lines_of(report: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("|")]


def test_sft_rows():
    cells = [cell for cell in sft.cells(Path("x"), "cuda", quick=False) if "qwen2_5_vl_3b_lora_4096" in cell.name]
    assert [cell.job["side"] for cell in cells] == list(sft.SIDES)
    slower = {**SFT, "seconds": [4.0, 8.0], "operations": SFT["operations"]}
    measured = list(zip(cells, [SFT, {"status": OUT_OF_MEMORY, "why": "CUDA out of memory"}, slower], strict=True))
    _, _, ours, full, batch_1 = lines_of(sft.report(measured, TOP, GPU))
    assert ours[4:7] == ["175 (150 to 200)", "-", "50.0 %"], "3e14 operations in 6 s of 1e14 a second"
    assert ours[9:11] == ["3.0", "4.0"]
    assert full[4] == "out of memory" and len(full) == len(ours)
    assert batch_1[5] == "2.00", "ours is twice as fast"
    found = sft.figures(measured, TOP)
    assert found["mfu"] == {cells[0].name: 0.5, cells[2].name: 0.25}


def test_rollout_rows():
    cells = [c for c in rollouts.cells(Path("x"), "cuda", quick=False) if c.name.startswith("qwen3_vl_4b_main_")]
    vllm = cells[-1]
    assert vllm.missing == rollouts.NO_VLLM
    figures = {"status": OK, "tokens": 1000, "least_bytes": 5e11, "allocated": 2**30, "reserved": 2**30}
    results = [
        {**figures, "seconds": [1.0, 2.0, 3.0]},
        {**figures, "seconds": [4.0]},
        {**figures, "seconds": [10.0]},
        {"status": MISSING, "why": vllm.missing},
    ]
    _, _, ours, _, generate, last = lines_of(rollouts.report(list(zip(cells, results, strict=True)), TOP, GPU))
    assert ours[4:8] == ["500 (333 to 1,000)", "-", "2.00 (1.00 to 3.00)", "4.0 x"]
    assert generate[5] == "5.00"
    assert last[4] == f"not there: {rollouts.NO_VLLM}"


def test_a_whole_grpo_step_is_the_sum_of_its_phases():
    cells = [cell for cell in grpo.cells(Path("x"), "cuda", quick=False) if cell.job["shape"] == "qwen2_5_vl_3b"]
    names = [cell.name.removeprefix("qwen2_5_vl_3b_") for cell in cells]
    assert names == ["rollout_ours", "rollout_trl", "update_ours", "update_trl_8", "update_trl_4"]
    seconds = [[10.0], [40.0], [2.0, 3.0, 4.0], [7.0], [9.0]]
    sizes = {"status": OK, "allocated": 2**30, "reserved": 2**30, "optimizer_seconds": [0.5]}
    measured = [(cell, {**sizes, "seconds": own}) for cell, own in zip(cells, seconds, strict=True)]
    assert grpo.whole_steps(measured) == {"qwen2_5_vl_3b": {"ours": 13.5, "trl": 47.5}}
    assert "lcot-plugin 13.50 s, TRL 47.50 s with its fastest batches, 3.52 times" in grpo.report(measured, TOP, GPU)
    full = [(cell, {"status": OUT_OF_MEMORY} if "trl" in cell.name else result) for cell, result in measured]
    assert "A whole step" not in grpo.report(full, TOP, GPU), "a side that lacks a phase has no step"


def test_the_doctor_is_held_against_what_the_gpu_held():
    cells = doctor.cells(Path("x"), "cuda", quick=False)
    assert len(cells) == 3 and all(cell.allocator == "" for cell in cells), "as a user's run"
    result = {"status": OK, "phases": {"rollout": 5 * 2**30, "update": 11 * 2**30}, "worst": "update"}
    result |= {"alive": 9 * 2**30, "allocated": 8 * 2**30, "reserved": 9.5 * 2**30, "context": 0.5 * 2**30}
    assert doctor.off_by(result) == pytest.approx(0.1)
    off = {**result, "reserved": 8 * 2**30}
    on_cpu = {**result, "allocated": 0, "reserved": 0, "context": 0}
    report = doctor.report(list(zip(cells, [result, off, on_cpu], strict=True)), TOP, GPU)
    _, _, within, too_large, unmeasured = lines_of(report)
    assert within[4:10] == ["11.0 (update)", "10.0", "+10.0 %", "yes", "9.0", "8.0"]
    assert too_large[6:8] == ["+29.4 %", "NO"]
    assert unmeasured[5:8] == ["-", "-", "-"]


# Kernels


def event(name: str, start: float, duration: float, category: str = "kernel", thread: int = 7) -> dict:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "tid": thread}


def test_kernels_of_a_trace():
    """Two streams overlap; what the CPU called is not counted beside what the GPU did."""
    trace = [
        event("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", 0, 100),
        event("void pytorch_flash::flash_fwd_kernel<...>", 50, 100, thread=8),
        event("void at::native::vectorized_elementwise_kernel<8, ...>", 200, 50),
        event("Memcpy DtoD (Device -> Device)", 250, 50, "gpu_memcpy"),
        event("aten::mm", 0, 1000, "cpu_op"),
        {"ph": "M", "name": "process_name"},
    ]
    found = kernels.kernels_of({"traceEvents": trace})
    assert len(found) == 4
    assert kernels.union(found) == pytest.approx(250e-6)
    by_kind = kernels.families(found)
    micros = {name: round(seconds * 1e6) for name, seconds in by_kind.items()}
    assert micros == {"attention": 100, "matrix products": 100, "copies": 50, "everything else": 50}
    assert kernels.top([*found, found[2]])[0][0].startswith(("nvjet", "void"))
    assert (found[2][0], pytest.approx(100e-6), 2) in kernels.top([*found, found[2]])


def test_of_a_cpu_operations_that_call_no_others_count():
    trace = [
        event("aten::linear", 0, 100, "cpu_op"),
        event("aten::addmm", 10, 80, "cpu_op"),
        event("aten::silu", 100, 20, "cpu_op"),
        event("aten::mm", 15, 5, "cpu_op", thread=9),
        event("aten::resolve_conj", 16, 1, "cpu_op", thread=9),
    ]
    found = kernels.kernels_of({"traceEvents": trace})
    assert sorted(name for name, _, _ in found) == ["aten::addmm", "aten::mm", "aten::silu"]


# All of it


def test_the_result_file_names_the_hardware(tmp_path):
    cells = sft.cells(Path("x"), "cuda", quick=False)[:1]
    text = run.write(tmp_path, GPU, [(cells[0], SFT)], quick=False)
    assert (tmp_path / "results.md").read_text() == text + "\n"
    for part in (
        "NVIDIA H100 80GB HBM3",
        "79.6 GiB",
        "driver 580.65",
        "CUDA 13.0",
        "989.50 TFLOP/s",
        "H100 data sheet",
    ):
        assert part in text
    assert "means anything" not in text and "## GRPO" not in text


def test_cells_have_names_of_their_own_and_jobs_that_a_file_can_hold():
    arguments = run.parse([])
    found = run.cells_of(arguments, Path("x"))
    assert len({cell.label for cell in found}) == len(found) > 50
    for cell in found:
        assert "/" not in cell.label
        json.dumps(cell.job)
    chosen = run.cells_of(run.parse(["sft", "--only", "3b_lora_8192"]), Path("x"))
    assert [cell.job["side"] for cell in chosen] == list(sft.SIDES)


def test_real_shapes_are_refused_on_a_cpu(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--device", "cpu"])
    assert "--quick" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.parse(["speed"])
    assert "no part is called speed" in capsys.readouterr().err


def test_spreads():
    assert spread([2.0]) == "2.00"
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
