"""A real vLLM, on the CPU where there is no GPU, serves the policy as transformers computes it.

`make test-vllm` runs these; by hand: LCOT_VLLM_PYTHON=DIR/bin/python pytest -m vllm.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import torch
from family_twins import FAMILY_TEMPLATES
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer
from loaded_twins import LoadedTwin, as_sequences, load_model, load_twin, reference_log_probs
from lora_twins import ALL_LAYERS, lora_twin, train
from transformers import AutoConfig, AutoModelForImageTextToText
from twins import TWIN_TEMPLATES

from lcot_plugin.integration.media import PromptEncoder
from lcot_plugin.rollout.vllm.engine import VllmEngine
from lcot_plugin.rollout.vllm.process import ServerSettings, VllmProcess
from lcot_plugin.rollout.vllm.server_side import lcot_launch
from lcot_plugin.rollout.vllm.weights import Mode, WeightSync, policy_folder
from lcot_plugin.types import RolloutGroup, SamplingParams

pytestmark = pytest.mark.vllm

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
ONE_PROCESS = SimpleNamespace(is_main_process=True, num_processes=1)
"""An accelerator."""
SAMPLING = SamplingParams(num_generations=4, max_new_tokens=24, temperature=0.9, seed=3)
TOLERANCE = 1e-4
"""Of log-probabilities in nats, both sides in float32."""
NOTICEABLE = 1e-2


@dataclass
class Running:
    """A server of a twin, and what talks to it."""

    twin: LoadedTwin
    process: VllmProcess
    folder: Path
    encoder: PromptEncoder

    def engine(self, mode: Mode) -> VllmEngine:
        sync = WeightSync([self.process.server], mode, Path(mkdtemp(dir=self.folder)))
        ends = self.twin.end_token_ids
        return VllmEngine(
            *([self.process.server], self.twin.vlm, self.twin.tokenizer, ends, self.encoder.pictures, sync),
            process=self.process,
        )

    def roll(self, engine: VllmEngine, model: Any, version: int) -> list[RolloutGroup]:
        """Completions of every prompt of the twin by this version of the policy."""
        prompts = self.twin.prompts
        with engine.policy(model, ONE_PROCESS, version):
            return engine.generate(None, prompts, SAMPLING, range(len(prompts)))

    def gap(self, groups: list[RolloutGroup], model: Any) -> float:
        """The largest difference between the server's log-probabilities and those of one plain forward pass each."""
        gaps = []
        for sequence in as_sequences(groups):
            with torch.no_grad():
                ours = reference_log_probs(model, sequence, self.twin.vlm.banned_token_ids, SAMPLING.temperature)
            gaps.append(float((ours - torch.tensor(sequence.completion.sampler_logps)).abs().max()))
        assert len(gaps) == len(self.twin.prompts) * SAMPLING.num_generations
        return max(gaps)


@pytest.fixture(scope="module", params=FAMILIES)
def running(
    request: pytest.FixtureRequest, twin: Any, vllm_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One server for all tests of a family: starting takes most of their time, since three processes import vLLM."""
    with started(twin(request.param), vllm_python, tmp_path_factory.mktemp(f"vllm_{request.param}")) as made:
        yield made


@contextmanager
def started(directory: Path, vllm_python: str, work: Path) -> Iterator[Running]:
    loaded = load_twin(directory)
    settings = ServerSettings(
        dtype="float32", max_model_len=512, max_lora_rank=8, start_timeout=400.0, extra_args="--max-num-seqs 16"
    )
    with pytest.MonkeyPatch.context() as patch, policy_folder(work) as folder:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        process = VllmProcess(vllm_python, loaded.directory, settings=settings, log_path=work / "server.log")
        with process:
            yield Running(loaded, process, folder, prompt_encoder(loaded))
            session = session_of(process)
        assert not lcot_launch.members(session)


def prompt_encoder(loaded: LoadedTwin) -> PromptEncoder:
    module = load_tokenizer(ModelArguments(model_name_or_path=str(loaded.directory)))
    data_args = DataArguments(template={**TWIN_TEMPLATES, **FAMILY_TEMPLATES}[loaded.family], cutoff_len=1024)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    return PromptEncoder(template, module["processor"], loaded.vlm)


def session_of(process: VllmProcess) -> int:
    assert process._process is not None
    return process._process.pid


def texts(groups: list[RolloutGroup]) -> list[list[int]]:
    return [completion.token_ids for group in groups for completion in group.completions]


def test_the_server_agrees_with_the_trainer(running: Running) -> None:
    running.engine("auto").check(running.twin.prompts, SAMPLING)


def test_routes_ask_for_the_key(running: Running) -> None:
    url = running.process.server.url
    assert requests.get(f"{url}/health", timeout=60).status_code == 200
    body = {"method": "reload_weights", "kwargs": {"weights_path": "/tmp"}}
    for route in ("/collective_rpc", "/v1/models", "/reset_prefix_cache"):
        assert requests.post(f"{url}{route}", json=body, timeout=60).status_code == 401
    key = {"Authorization": f"Bearer {running.process.api_key}"}
    assert requests.get(f"{url}/v1/models", headers=key, timeout=60).status_code == 200


def test_an_adapter_changes_what_is_sampled(running: Running) -> None:
    engine = running.engine("auto")
    model = lora_twin(running.twin.directory)
    first = running.roll(engine, model, version=0)
    assert engine.sync.mode == "adapter"
    assert running.gap(first, model) < TOLERANCE
    assert running.gap(first, running.twin.model) > NOTICEABLE
    train(model, seed=5)
    second = running.roll(engine, model, version=1)
    assert running.gap(second, model) < TOLERANCE
    assert running.gap(first, model) > NOTICEABLE
    assert len(running.process.server.models()) == 2  # the base model and one adapter


def test_a_killed_server_comes_back_with_the_policy(running: Running) -> None:
    engines = {mode: running.engine(mode) for mode in ("adapter", "weights")}
    models = {"adapter": lora_twin(running.twin.directory), "weights": lora_twin(running.twin.directory, seed=7)}
    before = {mode: running.roll(engine, models[mode], version=4) for mode, engine in engines.items()}
    session = session_of(running.process)
    server, *_ = sorted(set(lcot_launch.members(session)) - {session})  # the first that the launcher started
    os.kill(server, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while running.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running.process.poll() is not None
    assert not lcot_launch.members(session)
    after = {"adapter": running.roll(engines["adapter"], models["adapter"], version=4)}
    assert engines["adapter"].take_counts()["rollout/server_restarts"] == 1
    engines["weights"].sync.replay(running.process.server)  # the other engine has restarted the server
    after["weights"] = running.roll(engines["weights"], models["weights"], version=4)
    for mode, groups in after.items():
        assert texts(groups) == texts(before[mode])
        assert running.gap(groups, models[mode]) < TOLERANCE
    assert texts(after["adapter"]) != texts(after["weights"])


def test_weights_change_what_is_sampled(running: Running) -> None:
    # The last: the server's own weights, which adapters belong to, are gone afterwards.
    engine = running.engine("auto")
    # The vision tower too: features of images that the server remembers are other ones then.
    model = lora_twin(running.twin.directory, targets=ALL_LAYERS)
    first = running.roll(engine, model, version=0)
    assert engine.sync.mode == "weights"
    assert running.gap(first, model) < TOLERANCE
    assert running.gap(first, running.twin.model) > NOTICEABLE
    full = load_model(running.twin.directory)
    train(full, seed=6, scale=0.05)
    second = running.roll(engine, full, version=1)
    assert running.gap(second, full) < TOLERANCE
    assert running.gap(second, model) > NOTICEABLE


def tied_twin(directory: Path, folder: Path) -> Path:
    """The twin with an output layer that is its embeddings."""
    shutil.copytree(directory, folder)
    config = AutoConfig.from_pretrained(directory)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    model = AutoModelForImageTextToText.from_pretrained(directory, config=config, dtype=torch.float32)
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def test_a_tied_output_layer_follows_the_embeddings(
    twin: Any, vllm_python: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = tmp_path_factory.mktemp("vllm_tied")
    with started(tied_twin(twin("qwen2_5_vl"), work / "qwen2_5_vl"), vllm_python, work) as running:
        engine = running.engine("weights")
        model = load_model(running.twin.directory)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)
        train(model, seed=6, scale=0.05)
        assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        first = running.roll(engine, model, version=0)
        assert running.gap(first, model) < TOLERANCE
        assert running.gap(first, running.twin.model) > NOTICEABLE
