"""A whole GRPO run with a server that is killed in the middle of a rollout.

`make test-vllm` runs this; by hand: LCOT_VLLM_PYTHON=DIR/bin/python pytest -m vllm.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from twins import TWIN_TEMPLATES, write_problems

pytestmark = pytest.mark.vllm

REWARD = '''
def even_tokens(completions, completion_ids, **kwargs):
    """Something that a random model earns now and then."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]
'''
SCRIPT = '''
"""Runs a recipe; kills the server, all its processes at once, when the second rollout has asked for its first group."""

import os
import signal
import sys
import threading

from lcot_plugin import activation

activation.activate()
import yaml
from llamafactory.train.tuner import run_exp

from lcot_plugin.rollout.vllm.asking import Asking
from lcot_plugin.rollout.vllm.process import VllmProcess

launch, ask, run = VllmProcess._launch, Asking._ask, Asking.run
sessions, rollouts, lock = [], [], threading.Lock()


def launched(self):
    process = launch(self)
    sessions.append(process.pid)
    return process


def running(self):
    rollouts.append(self)
    return run(self)


def asking(self, job, server):
    with lock:
        if len(rollouts) == 2 and len(sessions) == 1:
            sessions.append(0)
            os.killpg(sessions[0], signal.SIGKILL)
    return ask(self, job, server)


VllmProcess._launch, Asking._ask, Asking.run = launched, asking, running
with open(sys.argv[1]) as file:
    run_exp(yaml.safe_load(file))
'''


SYNC = "weights"  # `adapter` takes as long and goes the same way; test_real_vllm restarts a server with either


def test_a_run_survives_its_servers_death(twin: Any, tmp_path: Path) -> None:
    python = os.environ.get("LCOT_VLLM_PYTHON")
    if not python:
        pytest.fail("LCOT_VLLM_PYTHON must name the Python of vLLM's environment: `make test-vllm` installs one.")
    write_problems(tmp_path, 6, num_text_only=2, num_two_images=2)
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "script.py").write_text(SCRIPT)
    recipe = {
        **{"model_name_or_path": str(twin("qwen2_5_vl")), "template": TWIN_TEMPLATES["qwen2_5_vl"]},
        **{"stage": "grpo", "do_train": True, "finetuning_type": "lora" if SYNC == "adapter" else "full"},
        **{"dataset": "problems", "dataset_dir": str(tmp_path), "media_dir": str(tmp_path)},
        **{"cutoff_len": 512, "max_new_tokens": 24, "grpo_num_generations": 4, "learning_rate": 1e-2},
        **{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 3, "logging_steps": 1},
        **{"grpo_reward_funcs": f"{tmp_path / 'reward.py'}:even_tokens", "report_to": "none", "use_cpu": True},
        **{"grpo_rollout_engine": "vllm", "grpo_vllm_python": python, "grpo_vllm_sync": SYNC},
        **{"grpo_vllm_args": "--max-num-seqs 16 --enforce-eager", "output_dir": str(tmp_path / "out")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "recipe.yaml")],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=420,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    assert [entry["rollout/server_restarts"] for entry in steps] == [0, 1, 0]
    # The server that was started again had the policy of its step, not the one that it began with.
    assert max(entry["sampler_gap/max"] for entry in steps) < 1e-3
    lines = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    assert [line["policy_step"] for line in lines] == [line["step"] for line in lines]
    assert len(lines) == 3 * 8
    assert (tmp_path / "out" / "vllm_server.log").read_text().count("lcot_serve.py") >= 2
