"""The engine against a real vLLM server: that what is asked for is what is drawn. `tests/real_vllm` has the weights.

`make test-vllm` runs these; by hand: LCOT_VLLM_PYTHON=DIR/bin/python pytest -m vllm.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loaded_twins import LoadedTwin, load_twin, reference_log_probs, written

from lcot_plugin.errors import RolloutError
from lcot_plugin.rollout.vllm.client import VllmServer
from lcot_plugin.rollout.vllm.engine import VllmEngine
from lcot_plugin.rollout.vllm.process import ServerSettings, VllmProcess
from lcot_plugin.types import Ending, SamplingParams

pytestmark = pytest.mark.vllm
SAMPLING = SamplingParams(num_generations=8, max_new_tokens=24, temperature=1.0, seed=3)
GREEDY = SamplingParams(num_generations=1, max_new_tokens=16, temperature=0.0)
CLOSE = 1e-4
"""Of log-probabilities in nats, both sides in float32; 2e-5 was measured."""


@dataclass(frozen=True)
class Served:
    loaded: LoadedTwin
    server: VllmServer
    engine: VllmEngine


def start(directory: Path, log: Path, extra_args: str = "") -> VllmProcess:
    settings = ServerSettings(
        dtype="float32",
        max_model_len=1024,
        extra_args=f"--enforce-eager --max-num-seqs 16 {extra_args}",
        start_timeout=600.0,
    )
    python = os.environ.get("LCOT_VLLM_PYTHON")
    if not python:
        pytest.fail("LCOT_VLLM_PYTHON must name the Python of vLLM's environment: `make test-vllm` installs one.")
    return VllmProcess(python, directory, settings=settings, log_path=log)


def make_engine(loaded: LoadedTwin, server: VllmServer) -> VllmEngine:
    """With the weights that the server began with."""
    parts = (loaded.vlm, loaded.tokenizer, loaded.end_token_ids)
    sync = SimpleNamespace(mode="weights")
    return VllmEngine([server], *parts, lambda record: record.images, sync)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def served(twin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    loaded = load_twin(twin("qwen2_5_vl"))
    with start(loaded.directory, tmp_path_factory.mktemp("log") / "vllm.log") as process:
        yield Served(loaded, process.server, make_engine(loaded, process.server))


def generate(served, sampling):
    prompts = served.loaded.prompts
    return served.engine.generate(None, prompts, sampling, range(len(prompts)))


def test_the_server_agrees_on_every_prompt(served):
    served.engine.check(served.loaded.prompts, SAMPLING)
    with pytest.raises(RolloutError, match="--max-model-len"):
        served.engine.check(served.loaded.prompts, replace(SAMPLING, max_new_tokens=1000))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_the_policy(served, temperature):
    sampling = replace(SAMPLING, temperature=temperature)
    banned = served.loaded.vlm.banned_token_ids
    groups = generate(served, sampling)
    for group in groups:
        assert len({tuple(completion.token_ids) for completion in group.completions}) > 1
        for completion in group.completions:
            sequence = written(group.prompt, completion.token_ids)
            with torch.no_grad():
                expected = reference_log_probs(served.loaded.model, sequence, banned, temperature)
            torch.testing.assert_close(torch.tensor(completion.sampler_logps), expected, rtol=0, atol=CLOSE)
            assert not set(completion.token_ids) & set(banned)
            assert (completion.token_ids[-1] in served.loaded.end_token_ids) == (completion.ending is Ending.STOPPED)


def test_greedy_completions_are_those_of_the_engine_in_process(served):
    loaded = served.loaded
    for sampling in (GREEDY, replace(GREEDY, repetition_penalty=1.5)):
        slots = range(len(loaded.prompts))
        expected = loaded.engine().generate(loaded.model, loaded.prompts, sampling, slots)
        for ours, theirs in zip(expected, generate(served, sampling), strict=True):
            (mine,), (other,) = ours.completions, theirs.completions
            assert (mine.token_ids, mine.text, mine.ending) == (other.token_ids, other.text, other.ending)


def test_a_group_larger_than_the_servers_batch_is_cut(served):
    sampling = replace(SAMPLING, num_generations=20)
    groups = generate(served, sampling)
    assert served.engine.facts(served.server).max_num_seqs == 16
    assert [len(group.completions) for group in groups] == [20] * len(groups)


def test_a_stop_string_ends_a_completion(served):
    text = generate(served, GREEDY)[1].completions[0].text
    stop = text[3:6]
    (_, group, *_) = generate(served, replace(GREEDY, stop_strings=(stop,)))
    (completion,) = group.completions
    assert completion.ending is Ending.STOPPED and stop in completion.text and len(completion.text) < len(text)


def test_raw_log_probabilities_and_another_model_are_refused(twin, tmp_path):
    ours, others = load_twin(twin("qwen2_5_vl")), load_twin(twin("qwen3_vl"))
    with start(ours.directory, tmp_path / "vllm.log", "--logprobs-mode raw_logprobs") as process:
        with pytest.raises(RolloutError, match="--logprobs-mode processed_logprobs"):
            make_engine(ours, process.server).check(ours.prompts, SAMPLING)
        with pytest.raises(RolloutError, match="serves another model"):
            make_engine(others, process.server).check(others.prompts, SAMPLING)
