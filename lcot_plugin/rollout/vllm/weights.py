"""How vLLM servers get the policy in training: through a folder that they read.

In: the model with its parallel wrapper, after an optimizer step. Out: servers that sample from it. Either the LoRA
adapter is written and loaded under a new name, or all weights are (a LoRA merged) and the server reloads them. vLLM's
transfer over NCCL or CUDA IPC is not used: it needs vLLM's own code in the training's process.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lcot_plugin.errors import ArgumentError, RolloutError
from lcot_plugin.packing.families import text_model_of
from lcot_plugin.rollout.vllm.agreed import agreed
from lcot_plugin.rollout.vllm.client import ServerGone, VllmServer
from lcot_plugin.rollout.vllm.policy_tensors import adapter_tensors, policy_tensors
from lcot_plugin.whole_weights import shards_weights

Mode = Literal["auto", "adapter", "weights"]

VERSION_PREFIX = "policy-"
LOADING_PREFIX = "loading-"
"""Of the label while a server has neither the old weights nor the new ones."""
FOLDER_PREFIX = "lcot_policy_"
LOCK_FILE = "lock"
"""In a run's folder; locked for as long as the run lives."""
SHARD_SIZE = "4GB"
SPARE_BYTES = 2**20
"""For what is written beside the tensors."""
MAX_SERVED_RANK = 512
UNTOUCHED = "default"
"""vLLM's label of the weights that it has loaded itself."""
BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq")
"""Values of `init_lora_weights` that take something off the base weights, which a server does not have."""


def why_not_adapter(model: nn.Module) -> str | None:
    """What of a policy keeps vLLM from serving it as a LoRA adapter on its own base weights; None where nothing does.

    `model`: with or without its parallel wrapper.
    """
    peft = find_peft(model)
    if peft is None:
        return "it has no LoRA adapter"
    if len(peft.active_adapters) != 1:
        return f"it has {len(peft.active_adapters)} active adapters"
    config = peft.peft_config[peft.active_adapters[0]]
    if config.peft_type.value != "LORA":
        return f"its adapter is of the type {config.peft_type.value}"
    if config.use_dora:
        return "its adapter is a DoRA (use_dora)"
    if config.bias != "none" or config.lora_bias:
        return "its adapter trains biases"
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING_STARTS):
        return f"its adapter began as {start}, which changes the base weights"
    if config.rank_pattern or config.alpha_pattern or config.layer_replication:
        return "its adapter has ranks, scalings or layers that differ (rank_pattern, alpha_pattern, layer_replication)"
    if config.r > MAX_SERVED_RANK:
        return f"its adapter has rank {config.r}, and vLLM serves up to {MAX_SERVED_RANK}"
    inside = {id(module) for module in text_model_of(peft).modules()}
    for name, module in peft.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            return f"it trains whole modules beside its adapter (modules_to_save: {name.rpartition('.')[2]})"
        if not isinstance(module, BaseTunerLayer):
            continue
        if id(module) not in inside:
            return f"its adapter changes {name}, outside of the language model's layers"
        if not isinstance(module, LoraLayer) or not isinstance(module.get_base_layer(), nn.Linear):
            return f"its adapter changes {name}, which is not a linear layer"
    return None


def find_peft(model: nn.Module) -> Any:
    """The PEFT model inside parallel wrappers; None where there is none."""
    from peft import PeftModel

    return next((module for module in model.modules() if isinstance(module, PeftModel)), None)


def resolve_mode(mode: Mode, model: nn.Module, servers: Sequence[VllmServer]) -> Literal["adapter", "weights"]:
    """How the policy will travel. Raises ArgumentError where it cannot in this mode, RolloutError where a server lacks
    the route; ServerGone."""
    obstacle = why_not_adapter(model)
    if mode == "adapter" and obstacle is not None:
        raise ArgumentError(
            f"grpo_vllm_sync: adapter: vLLM cannot serve this policy as an adapter, since {obstacle}. Write "
            "`grpo_vllm_sync: weights` (or auto)."
        )
    offers = [server.capabilities() for server in servers]
    missing = [s.url for s, offer in zip(servers, offers, strict=True) if not offer.offers("/v1/load_lora_adapter")]
    if mode == "adapter" and missing:
        raise RolloutError(
            f"grpo_vllm_sync: adapter: {', '.join(missing)} cannot load adapters: start it with "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment and with --enable-lora --max-lora-rank RANK, or "
            "write `grpo_vllm_sync: weights`."
        )
    if mode != "weights" and obstacle is None and not missing:
        return "adapter"
    if is_quantized(model):
        reason = obstacle or f"{', '.join(missing)} cannot load adapters (--enable-lora)"
        raise ArgumentError(
            f"grpo_vllm_sync: {mode}: the weights are quantized (quantization_bit), so they cannot be sent whole; and "
            f"not as an adapter, since {reason}."
        )
    missing = [s.url for s, offer in zip(servers, offers, strict=True) if not offer.offers("/collective_rpc")]
    if missing:
        raise RolloutError(
            f"grpo_vllm_sync: {mode}: {', '.join(missing)} cannot reload weights: start it with VLLM_SERVER_DEV_MODE=1 "
            "in its environment, on an interface that only you reach (docs/vllm.md)."
        )
    missing = [s.url for s, offer in zip(servers, offers, strict=True) if not offer.offers("/update_weight_version")]
    if missing:
        raise RolloutError(
            f"grpo_vllm_sync: {mode}: {', '.join(missing)} cannot label completions with the weights that wrote them "
            "(/update_weight_version), so nobody could tell whether it has the policy: start it with "
            "VLLM_SERVER_DEV_MODE=1 in its environment; where it has that, install the vLLM that docs/vllm.md names."
        )
    return "weights"


def check_base(server: VllmServer) -> None:
    """Raises RolloutError for a server whose base weights another run has replaced: an adapter on top of those would be
    another policy. Such a server tells by its label of weights, which only full weights are given."""
    routes = server.capabilities().routes
    if routes is not None and "/weight_info" in routes and (label := server.weight_version()) != UNTOUCHED:
        raise RolloutError(
            f"{server.url} has the weights of another run (version {label}), and this run sends an adapter for the "
            "model's own: start the server again."
        )


def is_quantized(model: nn.Module) -> bool:
    return any(getattr(module, "hf_quantizer", None) is not None for module in model.modules())


@contextmanager
def policy_folder(parent: Path, *, for_others: bool = False) -> Iterator[Path]:
    """A folder for one run's `WeightSync`, gone afterwards. Those of runs that were killed go first: in shared memory,
    each would hold the memory of a model until the machine restarts. for_others: servers of another user read it."""
    for path in parent.glob(f"{FOLDER_PREFIX}*"):
        if is_left_behind(path):
            shutil.rmtree(path, ignore_errors=True)  # another user's
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        if for_others:
            os.chmod(folder, 0o755)
        # Locked before it has its name: one that is there and not locked belongs to nobody. Process ids would not do,
        # since containers that share the folder each have their own.
        unnamed = Path(folder, f"{LOCK_FILE}.new")
        with unnamed.open("wb") as lock:
            with suppress(OSError):  # a file system without locks: nobody takes such folders for left behind
                fcntl.flock(lock, fcntl.LOCK_EX)
            unnamed.rename(Path(folder, LOCK_FILE))
            yield Path(folder)


def is_left_behind(folder: Path) -> bool:
    """Whether the run that a folder was made for is gone. False where that cannot be told."""
    try:
        with Path(folder, LOCK_FILE).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, another user's, or without a lock
        return False
    return True


class WeightSync:
    """Brings the policy's versions to servers. One per process of the training; process 0's does the work."""

    def __init__(
        self, servers: Sequence[VllmServer], mode: Mode, folder: Path, say: Callable[[str], None] = print
    ) -> None:
        """`folder`: for this run alone; the servers see it under the same path."""
        self.servers = list(servers)
        self.folder = folder.absolute()
        self.mode: Mode = mode
        """`auto` until the first push has decided."""
        self.version: int | None = None
        """The last one pushed."""
        self.seconds = 0.0
        """That the last push took."""
        self.num_bytes = 0
        """That the last push wrote."""
        self.name = ""
        """Of the last version pushed, used by no other one: the adapter's, or the label of whole weights."""
        self._say = say
        self._adapters: dict[str, str] = {}
        """By url, the adapter that each server has loaded last."""
        self._current: set[str] = set()
        """Urls."""
        self._lock = threading.Lock()

    def push(self, model: nn.Module, accelerator: Any, version: int) -> None:
        """Brings the policy to every server that answers; one that does not is left for `replay`.

        On every process. Raises ArgumentError or RolloutError, on every process, where the policy cannot travel.
        """
        started = time.perf_counter()
        first = self.version is None
        if first:
            self.mode = agreed(accelerator, lambda: resolve_mode(self.mode, model, self.servers))
        # Names are never used twice, not by two runs with one server either: what a server computed for a name, it
        # keeps.
        name = f"{VERSION_PREFIX}{secrets.token_hex(4)}-{version}"

        def read() -> dict[str, torch.Tensor]:
            source = adapter_tensors if self.mode == "adapter" else policy_tensors
            return dict(source(model, accelerator.is_main_process))

        # Of shards every process has to read its own, and one that fails in the middle cannot tell the others.
        shared = read() if shards_weights(model) else None
        self.name, self._current = agreed(
            accelerator, lambda: self._bring(model, read() if shared is None else shared, name, version)
        )
        self.version = version
        self.seconds = time.perf_counter() - started
        if first and accelerator.is_main_process:
            what = f"{'its adapter' if self.mode == 'adapter' else 'all weights'}, {self.num_bytes / 2**20:.1f} MiB"
            self._say(f"vLLM gets the policy through {self.folder}: {what} in {self.seconds:.2f} s.")

    def _bring(
        self, model: nn.Module, tensors: dict[str, torch.Tensor], name: str, version: int
    ) -> tuple[str, set[str]]:
        """On process 0; returns `name` and the servers that have it."""
        with self._lock:
            old = list(self.folder.glob(f"{VERSION_PREFIX}*"))
            if self.mode == "weights":  # two models may be more than shared memory holds; adapters are small
                remove(old)
                old = []
            distinct = {id(tensor): tensor for tensor in tensors.values()}  # tied ones are written once
            self.num_bytes = sum(tensor.nbytes for tensor in distinct.values())
            self._write(model, tensors, self.folder / name)
            self.name, self.version = name, version
            self._current = set()
            with ThreadPoolExecutor(max(1, len(self.servers))) as pool:
                failures = list(pool.map(self._try_load, self.servers))
            remove(old)
            for server, failure in zip(self.servers, failures, strict=True):
                if failure is not None:
                    self._say(f"{server.url} did not get version {version} of the policy: {failure}")
            return name, self._current

    def _write(self, model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.mkdir(parents=True)
        free = shutil.disk_usage(path).free
        if free < self.num_bytes + SPARE_BYTES:
            raise self._full(f"{free / 2**30:.2f} GiB are free")
        try:
            if self.mode == "adapter":
                save_adapter(model, tensors, path)
            else:
                save_weights(model, tensors, path)
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and "No space left" not in str(error):
                raise
            raise self._full(str(error)) from error

    def _full(self, reason: str) -> RolloutError:
        return RolloutError(
            f"The policy ({self.num_bytes / 2**30:.2f} GiB) does not fit into {self.folder}: {reason}. Make room "
            "there, or name another folder in grpo_vllm_weights_dir."
        )

    def _try_load(self, server: VllmServer) -> ServerGone | None:
        try:
            self._load(server)
        except ServerGone as error:  # it may come back: the engine calls `replay` then
            return error
        return None

    def _load(self, server: VllmServer) -> None:
        """Brings one server to the current version."""
        path = str(self.folder / self.name)
        if self.mode == "adapter":
            check_base(server)
            loaded = [model.name for model in server.models()]
            if self.name not in loaded:
                server.load_adapter(self.name, path)
            previous = self._adapters.get(server.url)
            self._adapters[server.url] = self.name
            if previous in loaded and previous != self.name:
                server.unload_adapter(previous)
        else:
            # What breaks off between here and the end leaves weights that nobody asks for.
            server.set_weight_version(f"{LOADING_PREFIX}{secrets.token_hex(4)}")
            server.reload_weights(path)
            server.reset_caches()
            server.set_weight_version(self.name)
        self._current.add(server.url)

    def has_current(self, server: VllmServer) -> bool:
        """Whether the server, asked now, has the last version pushed; on any process. Raises ServerGone."""
        if self.version is None:
            return True
        if self.mode == "adapter":
            return self.name in [model.name for model in server.models()]
        return server.weight_version() == self.name

    def is_current(self, server: VllmServer) -> bool:
        """Whether the server has taken the last version pushed."""
        return server.url in self._current

    def replay(self, server: VllmServer) -> None:
        """Brings a server that was away to the current version; nothing to do before the first push.

        Raises ServerGone, RolloutError.
        """
        with self._lock:
            if self.version is not None:
                self._load(server)

    def close(self) -> None:
        """Takes the adapter from the servers, which go on without this run, and removes what was written. On process
        0."""
        for server in self.servers:
            adapter = self._adapters.pop(server.url, None)
            if adapter is not None:
                with suppress(RolloutError):  # it is gone, or was started again
                    server.unload_adapter(adapter)
        remove(list(self.folder.glob(f"{VERSION_PREFIX}*")))


def save_adapter(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """In PEFT's format."""
    peft = find_peft(model)
    peft.peft_config[peft.active_adapters[0]].save_pretrained(path)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})


def save_weights(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """As a checkpoint of the transformers model, under names that vLLM knows."""
    base = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    shell = copy.copy(base)
    # The training's own configuration would be changed, and its generation settings would be checked for sampling
    # parameters without effect.
    shell.config = copy.deepcopy(base.config)
    shell.generation_config = GenerationConfig()
    shell._hf_peft_config_loaded = False
    if (conversions := getattr(base, "_weight_conversions", None)) is not None:
        shell._weight_conversions = [conversion for conversion in conversions if not renames_text_model(conversion)]
    shows_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        shell.save_pretrained(path, state_dict=tensors, max_shard_size=SHARD_SIZE)
    finally:
        if shows_bars:
            transformers_logging.enable_progress_bar()


def renames_text_model(conversion: Any) -> bool:
    """Whether one of transformers 5's changes between a checkpoint and the model renames the language model, nothing
    else.

    Undone, those write names of no checkpoint: `model.language_model.model.layers` (InternVL, LLaVA, Gemma 3),
    `model.language_model.visual` (Qwen3.5). vLLM knows the model's own ones: `model.language_model.layers`.
    """
    patterns = (*conversion.source_patterns, *conversion.target_patterns)
    return not getattr(conversion, "operations", None) and any("language_model" in pattern for pattern in patterns)


def remove(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path)
