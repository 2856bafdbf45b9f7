"""How the policy reaches the servers; these are fakes that read the folders as vLLM does."""

import copy
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from loaded_twins import FAMILIES, load_model
from lora_twins import ALL_LAYERS, TEXT_LAYERS, lora_twin, train
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from twins import TRANSFORMERS_5

from lcot_plugin import demo
from lcot_plugin.errors import ArgumentError, RolloutError
from lcot_plugin.rollout.vllm import agreed as agreed_module
from lcot_plugin.rollout.vllm import weights as weights_module
from lcot_plugin.rollout.vllm.client import Capabilities, ServedModel, ServerGone
from lcot_plugin.rollout.vllm.policy_tensors import policy_tensors
from lcot_plugin.rollout.vllm.weights import WeightSync, policy_folder, resolve_mode, why_not_adapter

ONE_PROCESS = SimpleNamespace(is_main_process=True, num_processes=1)
"""An accelerator."""
ROUTES = ("/v1/load_lora_adapter", "/collective_rpc", "/update_weight_version", "/weight_info")


@dataclass(eq=False)
class FakeServer:
    """Keeps what it was told and what it read."""

    url: str = "http://127.0.0.1:1"
    routes: tuple[str, ...] = ROUTES
    up: bool = True
    calls: list[tuple[str, str]] = field(default_factory=list)
    adapters: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    version: str = "default"

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset(self.routes), frozenset())

    def models(self) -> list[ServedModel]:
        return [ServedModel("base", 1024, None), *(ServedModel(name, None, "base") for name in self.adapters)]

    def _note(self, call: str, detail: str) -> None:
        if not self.up:
            raise ServerGone(f"{self.url} cannot be reached")
        self.calls.append((call, detail))

    def load_adapter(self, name: str, path: str) -> None:
        self._note("load", name)
        assert name not in self.adapters, "vLLM refuses a name that it has"
        self.adapters[name] = load_file(Path(path, "adapter_model.safetensors"))
        assert json.loads(Path(path, "adapter_config.json").read_text())["r"] == 8

    def unload_adapter(self, name: str) -> None:
        self._note("unload", name)
        del self.adapters[name]

    def reload_weights(self, path: str) -> None:
        self._note("reload", path)
        self.weights = {}
        for file in Path(path).glob("*.safetensors"):
            self.weights |= load_file(file)

    def reset_caches(self) -> None:
        self._note("reset", "")

    def set_weight_version(self, version: str) -> None:
        self._note("version", version)
        self.version = version

    def weight_version(self) -> str:
        return self.version


Sync = Callable[..., WeightSync]


@pytest.fixture
def sync(tmp_path: Path) -> Sync:
    """`sync(*servers, mode=...)`; what it says is in `said`."""

    def make(*servers: FakeServer, mode: str = "auto") -> WeightSync:
        said: list[str] = []
        made = WeightSync(servers, mode, tmp_path / "weights", said.append)
        made.said = said
        return made

    (tmp_path / "weights").mkdir()
    return make


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_identical(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if left[name].dtype != right[name].dtype or not left[name].equal(right[name])]
    assert not different


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_arrives_as_peft_reads_it(twin: Callable[[str], Path], sync: Sync) -> None:
    model, server = lora_twin(twin("qwen3_vl")), FakeServer()
    pushing = sync(server)
    pushing.push(model, ONE_PROCESS, 0)
    assert pushing.mode == "adapter"
    name = pushing.name
    assert list(server.adapters) == [name]
    read = PeftModel.from_pretrained(load_model(twin("qwen3_vl")), pushing.folder / name)
    assert_identical(dict(read.state_dict()), dict(model.state_dict()))
    assert pushing.num_bytes == sum(tensor.nbytes for tensor in server.adapters[name].values())
    assert [line for line in pushing.said if "its adapter" in line]


def test_a_new_version_is_loaded_before_the_old_one_goes(twin: Callable[[str], Path], sync: Sync) -> None:
    model, server = lora_twin(twin("qwen2_5_vl")), FakeServer()
    pushing = sync(server)
    pushing.push(model, ONE_PROCESS, 0)
    first = pushing.name
    before = server.adapters[first]
    train(model, seed=2)
    pushing.push(model, ONE_PROCESS, 3)
    second = pushing.name
    assert first != second
    assert server.calls == [("load", first), ("load", second), ("unload", first)]
    assert any(not tensor.equal(before[key]) for key, tensor in server.adapters[second].items())
    assert [path.name for path in pushing.folder.iterdir()] == [second]
    pushing.close()
    assert not list(pushing.folder.iterdir()) and not server.adapters


def test_names_are_not_used_twice(twin: Callable[[str], Path], sync: Sync) -> None:
    model, server = lora_twin(twin("qwen2_5_vl")), FakeServer()
    for _ in range(2):  # a run, and the same run resumed, with a server that stayed
        sync(server).push(model, ONE_PROCESS, 5)
    assert len(server.adapters) == 2


# --- all weights ------------------------------------------------------------------------------------------------------

ADAPTERS: dict[str, dict[str, Any]] = {
    "language model": {},
    "vision tower": {"targets": ALL_LAYERS},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "modules to save": {"modules_to_save": ["merger"]},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_merged_weights_are_pefts_and_the_training_weights_stay(
    twin: Callable[[str], Path], family: str, adapter: str
) -> None:
    model = lora_twin(twin(family), **ADAPTERS[adapter])
    before, twin_of_it = snapshot(model), copy.deepcopy(model)
    merged = dict(policy_tensors(model, keep=True))
    assert_identical(snapshot(model), before)
    expected = dict(twin_of_it.merge_and_unload().state_dict())
    assert merged.keys() == expected.keys()
    worst = max(float((merged[name] - expected[name]).abs().max()) for name in merged)
    assert worst < 1e-6
    base = load_model(twin(family)).state_dict()
    assert sum(not merged[name].equal(base[name]) for name in merged) >= 5  # the adapter is in there
    assert {name for name, tensor in merged.items() if tensor.requires_grad} == set()
    layers = [module for module in model.modules() if hasattr(module, "merged_adapters")]
    assert layers and not any(layer.merged_adapters for layer in layers)
    assert not any(getattr(layer, "_caches", None) for layer in layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_weights_arrive_as_from_pretrained_reads_them(
    twin: Callable[[str], Path], family: str, sync: Sync
) -> None:
    model, server = load_model(twin(family)), FakeServer()
    train(model, seed=3)
    model.generation_config.temperature = 0.5  # with do_sample false, transformers refuses to save it
    model.generation_config.do_sample = False
    config = model.config.to_dict()
    before = snapshot(model)
    pushing = sync(server)
    pushing.push(model, ONE_PROCESS, 7)
    assert pushing.mode == "weights"
    assert model.config.to_dict() == config
    assert_identical(snapshot(model), before)
    (folder,) = pushing.folder.iterdir()
    read = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert_identical(snapshot(read), before)
    # Names that vLLM knows: the model's own, or with transformers 4 those of the checkpoint.
    known = set(before) if TRANSFORMERS_5 else set(load_file(twin(family) / "model.safetensors"))
    assert set(server.weights) == known
    # While it reads it has a label that nobody asks for.
    assert [call for call, _ in server.calls] == ["version", "reload", "reset", "version"]
    assert server.calls[0][1].startswith("loading-")
    assert server.version == pushing.name and pushing.has_current(server)


def test_tied_weights_are_written_once(sync: Sync) -> None:
    model, server = load_model(Path(demo.__file__).parent / "model"), FakeServer()
    assert model.config.tie_word_embeddings
    sync(server).push(model, ONE_PROCESS, 0)
    assert "lm_head.weight" not in server.weights
    assert sum(tensor.numel() for tensor in server.weights.values()) == sum(p.numel() for p in model.parameters())


def test_half_precision_stays(twin: Callable[[str], Path]) -> None:
    model = lora_twin(twin("qwen2_5_vl")).to(torch.bfloat16)
    before = snapshot(model)
    expected = dict(copy.deepcopy(model).merge_and_unload().state_dict())
    assert_identical(dict(policy_tensors(model, keep=True)), expected)
    assert_identical(snapshot(model), before)


def test_older_weights_go_before_new_ones_are_written(
    twin: Callable[[str], Path], sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pushing = load_model(twin("qwen2_5_vl")), sync(FakeServer())
    pushing.push(model, ONE_PROCESS, 0)
    seen: list[int] = []
    save = weights_module.save_weights
    monkeypatch.setattr(
        weights_module,
        "save_weights",
        lambda model, tensors, path: (seen.append(len(list(pushing.folder.iterdir()))), save(model, tensors, path)),
    )
    pushing.push(model, ONE_PROCESS, 1)
    assert seen == [1]


# --- what can go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["adapter", "weights"])
def test_a_disk_that_is_too_small_is_named(
    twin: Callable[[str], Path], sync: Sync, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    pushing = sync(FakeServer(), mode=mode)
    monkeypatch.setattr(weights_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(RolloutError, match=rf"does not fit into {pushing.folder}.* name another folder in grpo_vllm_w"):
        pushing.push(lora_twin(twin("qwen2_5_vl")), ONE_PROCESS, 0)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        weights_module.SafetensorError("Os { No space left on device }"),
    ],
)
def test_a_disk_that_fills_up_is_named(
    twin: Callable[[str], Path], sync: Sync, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*arguments: Any) -> None:
        raise failure

    monkeypatch.setattr(weights_module, "save_adapter", fail)
    pushing = sync(FakeServer())
    with pytest.raises(RolloutError, match=rf"does not fit into {pushing.folder}: .*No space left"):
        pushing.push(lora_twin(twin("qwen2_5_vl")), ONE_PROCESS, 0)


def test_another_failure_of_the_disk_is_not_taken_for_a_full_one(
    twin: Callable[[str], Path], sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(weights_module, "save_adapter", fail)
    with pytest.raises(PermissionError):
        sync(FakeServer()).push(lora_twin(twin("qwen2_5_vl")), ONE_PROCESS, 0)


def test_a_server_that_is_away_gets_the_version_later(twin: Callable[[str], Path], sync: Sync) -> None:
    here, away = FakeServer(), FakeServer("http://127.0.0.1:2")
    pushing = sync(here, away)
    model = lora_twin(twin("qwen2_5_vl"))
    pushing.push(model, ONE_PROCESS, 0)
    away.up = False
    pushing.push(model, ONE_PROCESS, 1)
    assert [pushing.is_current(server) for server in (here, away)] == [True, False]
    assert pushing.said[-1].startswith("http://127.0.0.1:2 did not get version 1")
    away.up = True
    away.adapters.clear()  # it was restarted
    pushing.replay(away)
    assert pushing.is_current(away)
    assert list(away.adapters) == list(here.adapters) == [pushing.name]


@pytest.mark.parametrize("mode", ["adapter", "weights"])
def test_a_replay_to_a_server_that_has_everything_is_harmless(
    twin: Callable[[str], Path], sync: Sync, mode: str
) -> None:
    server = FakeServer()
    pushing = sync(server, mode=mode)
    pushing.replay(server)  # nothing was pushed so far
    assert not server.calls
    pushing.push(lora_twin(twin("qwen2_5_vl")), ONE_PROCESS, 0)
    kept = server.adapters | server.weights
    pushing.replay(server)
    assert (server.adapters | server.weights).keys() == kept.keys()


def test_an_adapter_is_not_put_on_the_weights_of_another_run(twin: Callable[[str], Path], sync: Sync) -> None:
    server = FakeServer()
    sync(server, mode="weights").push(load_model(twin("qwen2_5_vl")), ONE_PROCESS, 4)
    with pytest.raises(RolloutError, match=r"has the weights of another run \(version policy-.*-4\).*start the server"):
        sync(server).push(lora_twin(twin("qwen2_5_vl")), ONE_PROCESS, 0)


# --- which way --------------------------------------------------------------------------------------------------------

NOT_SERVED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "DoRA"),
    "modules to save": ({"modules_to_save": ["merger"]}, "modules_to_save: merger"),
    "vision tower": ({"targets": ALL_LAYERS}, "outside of the language model"),
    "bias": ({"bias": "all"}, "biases"),
    "ranks": ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    "pissa": ({"init_lora_weights": "pissa"}, "base weights"),
    "embedding": ({"targets": ["embed_tokens", "q_proj"]}, "embed_tokens, which is not a linear layer"),
    "head": ({"targets": ["lm_head"]}, "changes base_model.model.lm_head, outside of the language model"),
}


@pytest.mark.parametrize("adapter", NOT_SERVED)
def test_what_vllm_cannot_serve_as_an_adapter_goes_as_weights(twin: Callable[[str], Path], adapter: str) -> None:
    settings, reason = NOT_SERVED[adapter]
    targets = settings.get("targets", TEXT_LAYERS)
    model = lora_twin(twin("qwen2_5_vl"), **{**settings, "targets": targets})
    assert resolve_mode("auto", model, [FakeServer()]) == "weights"
    with pytest.raises(ArgumentError, match=f"grpo_vllm_sync: adapter: .*{reason}.*Write `grpo_vllm_sync: weights`"):
        resolve_mode("adapter", model, [FakeServer()])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_the_language_model_goes_as_an_adapter(twin: Callable[[str], Path], family: str) -> None:
    plain = load_model(twin(family))
    names = [name for name, _ in plain.named_modules() if name.endswith(("q_proj", "down_proj"))]
    text = [name for name in names if "vision" not in name and "visual" not in name]
    assert why_not_adapter(lora_twin(twin(family), targets=text)) is None
    assert why_not_adapter(plain) == "it has no LoRA adapter"


def test_two_active_adapters_go_as_weights(twin: Callable[[str], Path]) -> None:
    model = lora_twin(twin("qwen2_5_vl"))
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    assert why_not_adapter(model) == "it has 2 active adapters"


def test_a_server_without_the_route_for_adapters_gets_weights(twin: Callable[[str], Path]) -> None:
    model, server = lora_twin(twin("qwen2_5_vl")), FakeServer(routes=("/collective_rpc", "/update_weight_version"))
    assert resolve_mode("auto", model, [FakeServer(), server]) == "weights"
    with pytest.raises(RolloutError, match=r"127\.0.0.1:1 cannot load adapters: .*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        resolve_mode("adapter", model, [server])


def test_a_server_that_cannot_label_its_completions_gets_no_weights(twin: Callable[[str], Path]) -> None:
    server = FakeServer(routes=("/collective_rpc",))
    with pytest.raises(RolloutError, match=r"127\.0.0.1:1 cannot label completions .*VLLM_SERVER_DEV_MODE=1"):
        resolve_mode("auto", load_model(twin("qwen2_5_vl")), [server])


def test_a_server_without_the_route_for_weights_is_refused(twin: Callable[[str], Path]) -> None:
    server = FakeServer(routes=())
    with pytest.raises(RolloutError, match="cannot reload weights: start it with VLLM_SERVER_DEV_MODE=1"):
        resolve_mode("auto", load_model(twin("qwen2_5_vl")), [server])


def test_quantized_weights_go_as_an_adapter_only(twin: Callable[[str], Path]) -> None:
    model = lora_twin(twin("qwen2_5_vl"))
    model.get_base_model().hf_quantizer = object()
    assert resolve_mode("auto", model, [FakeServer()]) == "adapter"
    with pytest.raises(ArgumentError, match="the weights are quantized"):
        resolve_mode("weights", model, [FakeServer()])


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_of_killed_runs_are_removed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from lcot_plugin.rollout.vllm.weights import policy_folder\n"
        f"with policy_folder(Path({str(tmp_path)!r})) as folder: print(folder, flush=True); time.sleep(600)"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    other = Path(run.stdout.readline().strip())
    (tmp_path / "lcot_policy_begun").mkdir()  # its run has not come to its lock yet
    kept = {"lcot_policy_begun"}
    with policy_folder(tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {*kept, other.name, folder.name}
        run.kill()
        run.wait()
        run.stdout.close()
        with policy_folder(tmp_path) as second:  # this process's own folder is another run's too
            assert {path.name for path in tmp_path.iterdir()} == {*kept, folder.name, second.name}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_folder_is_for_its_own_user_unless_others_serve(tmp_path: Path) -> None:
    with policy_folder(tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    with policy_folder(tmp_path, for_others=True) as folder:
        assert folder.stat().st_mode & 0o777 == 0o755


# --- several processes ------------------------------------------------------------------------------------------------


def test_what_stops_process_0_stops_the_others(
    twin: Callable[[str], Path], sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    PartialState()
    told = [None, "RolloutError: no room"]
    monkeypatch.setattr(agreed_module, "broadcast_object_list", lambda objects: objects.__setitem__(slice(None), told))
    other = SimpleNamespace(is_main_process=False, num_processes=2)
    with pytest.raises(RolloutError, match=r"Process 0 could not serve the policy: RolloutError: no room") as stopped:
        sync(FakeServer()).push(lora_twin(twin("qwen2_5_vl")), other, 0)
    assert stopped.value.agreed


def test_tensors_that_cannot_be_read_stop_every_process(
    twin: Callable[[str], Path], sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(agreed_module, "broadcast_object_list", lambda objects: told.append(list(objects)))
    monkeypatch.setattr(weights_module, "adapter_tensors", lambda model, keep: (_ for _ in ()).throw(MemoryError("!")))
    main = SimpleNamespace(is_main_process=True, num_processes=2)
    with pytest.raises(MemoryError) as stopped:
        sync(FakeServer()).push(lora_twin(twin("qwen2_5_vl")), main, 0)
    assert told[-1] == [None, "MemoryError: !"]
    assert stopped.value.agreed
