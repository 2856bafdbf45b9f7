"""Faults injected into real runs: signals, kills, no memory, NaN, a rollout engine that is gone.

Six prompts, four to a rollout of two updates: rollouts at the steps 0, 2 and 4.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import recipe_runs
import torch
import yaml
from safetensors.torch import load_file
from twins import write_problems

from lcot_plugin.integration import launcher, survival
from lcot_plugin.survival.checkpoints import fault_of, newest_whole

SECRETS = {name: f"a-secret-{name.lower()}" for name in ("HF_TOKEN", "OPENAI_API_KEY", "VLLM_API_KEY", "WANDB_API_KEY")}
FAULTS = Path(__file__).parent / "run_with_fault.py"
REWARD = '''
def begins_even(completions, completion_ids, **kwargs):
    """0 or 1, so that all completions of a group often earn the same."""
    return [float(ids[0] % 8 == 0) for ids in completion_ids]
'''


def run(recipe: dict[str, Any], folder: Path, *, processes: int = 1, **faults: int) -> subprocess.CompletedProcess[str]:
    """Trains into `folder`/out with run_with_fault.py."""
    words = [f"{name}={value}" for name, value in faults.items()]
    return recipe_runs.run(recipe, folder, *words, processes=processes, environment=SECRETS, program=FAULTS)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, twin: Any) -> dict[str, Any]:
    """GRPO with everything that a rollout changes beside the weights; no checkpoint but those of faults."""
    folder = tmp_path_factory.mktemp("survival")
    write_problems(folder, 6, num_text_only=2, num_two_images=1)
    (folder / "reward.py").write_text(REWARD)
    return recipe_runs.grpo_recipe(
        folder,
        twin,
        grpo_num_iterations=2,
        grpo_replay_groups=4,
        grpo_reward_funcs=f"{folder / 'reward.py'}:begins_even",
        max_grad_norm=1.0,
        max_steps=6,
        save_steps=100,
        save_strategy="steps",
        use_cpu=True,
    )


@pytest.fixture(scope="module")
def undisturbed(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(recipe, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    (folder / "output.txt").write_text(result.stdout + result.stderr)
    return folder


def assert_goes_on_to(undisturbed: Path, recipe: dict[str, Any], folder: Path, processes: int = 1) -> None:
    """The same command again ends with the weights and the completions of the run without a fault."""
    resumed = run(recipe, folder, processes=processes)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    whole, again = (load_file(path / "out" / "model.safetensors") for path in (undisturbed, folder))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    texts = [(path / "out" / "completions.jsonl").read_text() for path in (undisturbed, folder)]
    assert texts[0] == texts[1]


def last_log(folder: Path) -> dict[str, float]:
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry][-1]


# --- signals and kills ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        ({"term_in_rollout": 4}, 4),  # given up: nothing of it is in the checkpoint
        ({"term_in_update": 2}, 3),  # the step ends; the checkpoint lies between the updates of a rollout
    ],
    ids=str,
)
def test_sigterm_ends_with_a_checkpoint_and_the_same_command_goes_on(
    undisturbed: Path, recipe: dict[str, Any], tmp_path: Path, fault: dict[str, int], step: int
) -> None:
    stopped = run(recipe, tmp_path, **fault)
    assert stopped.returncode == 143, stopped.stderr[-3000:]
    assert newest_whole(tmp_path / "out") == str(tmp_path / "out" / f"checkpoint-{step}")
    assert f"SIGTERM ended the run after {step} optimizer steps" in stopped.stderr + stopped.stdout
    assert not (tmp_path / "out" / "model.safetensors").exists(), "it must not look finished"
    assert_goes_on_to(undisturbed, recipe, tmp_path)


def test_a_kill_while_a_checkpoint_is_written_costs_the_steps_since_the_one_before(
    undisturbed: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    saving = {**recipe, "save_steps": 2}
    assert run(saving, tmp_path, kill_in_save=4).returncode == -signal.SIGKILL
    assert newest_whole(tmp_path / "out", lambda line: None) == str(tmp_path / "out" / "checkpoint-2")
    (tmp_path / "out" / "checkpoint-2").rename(tmp_path / "out" / "checkpoint-3")  # of a later step, and damaged
    (tmp_path / "out" / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    refused = run({**saving, "resume_from_checkpoint": True}, tmp_path)
    assert "no whole checkpoint" in refused.stderr and "optimizer.pt has 0 bytes" in refused.stderr
    assert_goes_on_to(undisturbed, recipe, tmp_path)  # from the start: there is nothing whole


EVALUATING = {"eval_dataset": "problems", "per_device_eval_batch_size": 2, "grpo_eval_generations": 2}


def test_sigterm_gives_an_evaluation_up(undisturbed: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """It may take longer than a scheduler waits; the step before it is saved."""
    evaluating = {**recipe, **EVALUATING, "eval_strategy": "steps", "eval_steps": 2}
    stopped = run(evaluating, tmp_path, term_in_evaluation=1)
    assert stopped.returncode == 143, stopped.stderr[-3000:]
    assert newest_whole(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-2")
    assert not (tmp_path / "out" / "eval_completions.jsonl").exists()
    assert_goes_on_to(undisturbed, recipe, tmp_path)


def test_sigterm_ends_a_run_that_only_evaluates(recipe: dict[str, Any], tmp_path: Path) -> None:
    evaluating = {key: value for key, value in recipe.items() if key not in ("do_train", "dataset")}
    stopped = run({**evaluating, **EVALUATING, "do_eval": True}, tmp_path, term_in_evaluation=0)
    assert stopped.returncode == -signal.SIGTERM, stopped.stderr[-3000:]
    assert not (tmp_path / "out" / "eval_results.json").exists()


def packed_sft(recipe: dict[str, Any]) -> dict[str, Any]:
    packed = {key: value for key, value in recipe.items() if not key.startswith("grpo_")}
    packed |= {"stage": "sft", "length_aware_packing": True, "per_device_train_batch_size": 1, "max_steps": 4}
    return packed | {"gradient_accumulation_steps": 1, "cutoff_len": 256}


def test_a_packed_sft_run_stops_and_goes_on_too(recipe: dict[str, Any], tmp_path: Path) -> None:
    packed = packed_sft(recipe)
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(packed, whole).returncode == 0
    stopped = run(packed, again, term_at=1)
    assert stopped.returncode == 143, stopped.stderr[-3000:]
    assert fault_of(again / "out" / "checkpoint-2") is None
    resumed = run(packed, again)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    one, two = (load_file(folder / "out" / "model.safetensors") for folder in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["term_in_rollout", "engine_gone"])
def test_two_processes_end_alike_when_one_of_them_is_told(recipe: dict[str, Any], tmp_path: Path, fault: str) -> None:
    halved = {**recipe, "per_device_train_batch_size": 4, "ddp_backend": "gloo"}
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(halved, whole, processes=2).returncode == 0
    stopped = run(halved, again, processes=2, rank=1, **{fault: 2})
    assert stopped.returncode != 0
    assert newest_whole(again / "out") == str(again / "out" / "checkpoint-2")
    assert_goes_on_to(whole, halved, again, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["error_at", "term_in_evaluation"])
def test_two_processes_of_which_one_fails_or_is_told_in_an_evaluation(
    recipe: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    """An error of one process costs the steps since the last checkpoint; a signal to one costs nothing."""
    halved = {**recipe, "per_device_train_batch_size": 4, "ddp_backend": "gloo", "save_steps": 2}
    if fault == "term_in_evaluation":
        halved |= {**EVALUATING, "eval_strategy": "steps", "eval_steps": 3}
    ended = run(halved, tmp_path, processes=2, rank=1, **{fault: 3 if fault == "error_at" else 2})
    assert ended.returncode != 0
    assert ("an ordinary error" in ended.stderr) == (fault == "error_at")
    kept = "checkpoint-2" if fault == "error_at" else "checkpoint-3"
    assert newest_whole(tmp_path / "out") == str(tmp_path / "out" / kept)


@pytest.mark.slow
def test_sigterm_to_the_launcher_reaches_the_training(recipe: dict[str, Any], tmp_path: Path) -> None:
    """As from `docker stop` or Kubernetes: the first process of the container alone."""
    path = tmp_path / "recipe.yaml"
    halved = {**recipe, "per_device_train_batch_size": 4, "ddp_backend": "gloo", "max_steps": 500}
    path.write_text(yaml.safe_dump({**halved, "output_dir": str(tmp_path / "out")}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lcot_plugin", "train", str(path)], env=environment, stdout=output, stderr=output
        )
        log, deadline = tmp_path / "out" / "trainer_log.jsonl", time.monotonic() + 200
        while not (log.exists() and log.read_text()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143, (tmp_path / "output.txt").read_text()[-3000:]
    assert newest_whole(tmp_path / "out") is not None, (tmp_path / "output.txt").read_text()[-3000:]


# --- faults within a step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["memory_in_update", "memory_in_backward", "memory_in_rollout"])
def test_a_step_that_does_not_fit_is_made_in_parts(
    undisturbed: Path, recipe: dict[str, Any], tmp_path: Path, fault: str
) -> None:
    result = run({**recipe, "max_steps": 1}, tmp_path, **{fault: 0})
    assert result.returncode == 0, result.stderr[-3000:]
    name = "faults/memory_rollout" if fault == "memory_in_rollout" else "faults/memory_update"
    assert last_log(tmp_path)[name] == 1
    logs = [
        json.loads((f / "out" / "trainer_state.json").read_text())["log_history"][0] for f in (undisturbed, tmp_path)
    ]
    assert logs[1]["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-4)
    assert logs[1]["reward"] == logs[0]["reward"]
    assert logs[0]["grad_norm"] > 0


def test_a_gradient_of_nan_is_left_out(recipe: dict[str, Any], tmp_path: Path) -> None:
    short = {**recipe, "max_steps": 3}
    result = run(short, tmp_path, nan_at=1)
    assert result.returncode == 0, result.stderr[-3000:]
    assert last_log(tmp_path)["faults/skipped_steps"] == 1
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "out" / "model.safetensors").values())
    stopped = run({**short, "grpo_max_skipped_steps": 0}, tmp_path / "strict", nan_at=1)
    assert "grpo_max_skipped_steps" in stopped.stderr and stopped.returncode == 1
    assert newest_whole(tmp_path / "strict" / "out") == str(tmp_path / "strict" / "out" / "checkpoint-1")


def test_a_pack_whose_gradient_is_nan_is_left_out(recipe: dict[str, Any], tmp_path: Path) -> None:
    """With a learning rate that moves every weight, the step that is left out is as if it had not been."""
    short = {**packed_sft(recipe), "max_steps": 2, "lr_scheduler_type": "constant"}
    assert run({**short, "max_steps": 1}, tmp_path / "one").returncode == 0
    result = run(short, tmp_path / "two", nan_at=1)
    assert result.returncode == 0, result.stderr[-3000:]
    assert last_log(tmp_path / "two")["faults/skipped_steps"] == 1
    one, two = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_engine_that_is_gone_ends_the_run_with_a_checkpoint(
    undisturbed: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    ended = run(recipe, tmp_path, engine_gone=4)
    assert ended.returncode == 1
    assert "RolloutError: no server answers" in ended.stderr
    assert newest_whole(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-4")
    assert_goes_on_to(undisturbed, recipe, tmp_path)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_flat(recipe: dict[str, Any], tmp_path: Path) -> None:
    """0.5 to 2.4 KB per step were measured: log_history, and another rollout at hand. A kept one would be 100 KB."""
    path, long = tmp_path / "recipe.yaml", {**recipe, "grpo_num_iterations": 1, "gradient_accumulation_steps": 1}
    long |= {"max_new_tokens": 6, "logging_steps": 10, "max_steps": 161, "grpo_dynamic_sampling": True}
    path.write_text(yaml.safe_dump({**long, "output_dir": str(tmp_path / "out")}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "run_and_measure.py"), str(path), "2", "100", "160"]
    measured = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert measured.returncode == 0, measured.stderr[-3000:]
    held = json.loads(measured.stdout.splitlines()[-1])
    assert (held["160"]["python"] - held["100"]["python"]) / 60 < 8000
    assert held["160"]["resident"] - held["100"]["resident"] < 16 << 20


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_is_written_anywhere(undisturbed: Path) -> None:
    files = [path for path in undisturbed.rglob("*") if path.is_file()]
    assert {"completions.jsonl", "trainer_log.jsonl", "output.txt"} <= {path.name for path in files}
    for path in files:
        contents = path.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in contents], path


# --- seams ------------------------------------------------------------------------------------------------------------


def test_the_parser_takes_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    for step, contents in ((2, "{}"), (4, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(contents)
    module: Any = ModuleType("parser")
    survival.apply(module)
    assert module.get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-2")


def test_the_launcher_passes_a_signal_on_and_exits_as_it_tells(tmp_path: Path) -> None:
    child = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(open(sys.argv[1], "w").close()))
time.sleep(60)
"""
    program = f"""
import os, signal, sys, threading
from lcot_plugin.integration.launcher import run_forwarding
threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.Signals[sys.argv[2]])).start()
run_forwarding([sys.executable, "-c", {child!r}, sys.argv[1]], env=dict(os.environ), check=True)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name, code in (("SIGTERM", 143), ("SIGUSR1", 138)):
        command = [sys.executable, "-c", program, str(tmp_path / name), name]
        assert subprocess.run(command, env=environment, timeout=60).returncode == code
        assert (tmp_path / name).exists(), "the child was told by SIGTERM"


def test_the_launcher_passes_a_second_interrupt_on(tmp_path: Path) -> None:
    """The first came from the terminal, to everybody; what is sent to the launcher alone must not be lost."""
    child = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(open(sys.argv[1], "w").close()))
time.sleep(60)
"""
    program = f"""
import os, signal, sys, threading
from lcot_plugin.integration.launcher import run_forwarding
for seconds in (1.5, 2.0):
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
run_forwarding([sys.executable, "-c", {child!r}, sys.argv[1]], env=dict(os.environ), check=True)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(tmp_path / "told")]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 130
    assert (tmp_path / "told").exists()


def test_the_launcher_without_signals_is_subprocess_run(capfd: pytest.CaptureFixture[str]) -> None:
    module: Any = SimpleNamespace(__file__="launcher.py")
    launcher.apply(module)
    show = "import os; print(os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT'])"
    done = module.subprocess.run([sys.executable, "-c", show], env=dict(os.environ), check=True)
    assert done.returncode == 0
    assert capfd.readouterr().out == "600\n"
    with pytest.raises(subprocess.CalledProcessError):
        module.subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], env=dict(os.environ), check=True)
    assert module.subprocess.PIPE == subprocess.PIPE
