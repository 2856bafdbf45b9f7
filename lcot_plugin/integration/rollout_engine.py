"""The rollout engine that the YAML keys ask for, for as long as the run lasts.

In: the run's arguments and the loaded model's parts. Out: a RolloutEngine. A vLLM server that the run starts is started
by the first process, which tells the others where it is.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from llamafactory.extras.logging import get_logger

from lcot_plugin.errors import ArgumentError, LcotError, RolloutError
from lcot_plugin.integration.media import batch_media
from lcot_plugin.integration.refusals import RunArguments, uses_zero_3
from lcot_plugin.policy.prompts import prompt_records
from lcot_plugin.protocols import RolloutEngine
from lcot_plugin.rollout.transformers_engine import TransformersEngine
from lcot_plugin.types import PromptRecord
from lcot_plugin.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from lcot_plugin.policy.trainer import GrpoParts
    from lcot_plugin.rollout.vllm.process import VllmProcess
    from lcot_plugin.rollout.vllm.weights import Mode

logger = get_logger(f"llamafactory.{__name__}")

SERVER_LOG = "vllm_server.log"
"""In output_dir."""
SHARED_MEMORY = Path("/dev/shm")
TIMES_THE_MODEL = 2
"""The room that shared memory must have: others use it too."""
CPU_BATCHED_TOKENS = 8192
NUM_CHECKED = 8
"""Prompts that the servers are compared with before the first step; every later one is compared as it is used."""


@dataclass(frozen=True)
class EngineParts:
    """What both engines are made of."""

    vlm: VisionLanguageModel
    tokenizer: Any
    end_token_ids: Sequence[int]
    processor: Any
    pictures: Callable[[PromptRecord], list[Any]]
    num_bytes: int
    """Of the model's weights."""


@contextmanager
def rollout_engine(run: RunArguments, parts: EngineParts) -> Iterator[RolloutEngine]:
    """Raises RolloutError where no server comes up, ArgumentError for what cannot work."""
    arguments, generating = run.finetuning, run.generating
    check_nodes(arguments)
    if arguments.grpo_rollout_engine == "transformers":
        yield TransformersEngine(
            parts.vlm,
            parts.tokenizer,
            parts.end_token_ids,
            batch_media,
            arguments.grpo_rollout_batch_size,
            generating.skip_special_tokens,
        )
        return
    from lcot_plugin.rollout.vllm.client import VllmServer
    from lcot_plugin.rollout.vllm.engine import VllmEngine
    from lcot_plugin.rollout.vllm.weights import WeightSync

    with ExitStack() as stack:
        process: VllmProcess | None = None
        urls, api_key = arguments.vllm_urls(), os.environ.get(arguments.grpo_vllm_api_key_env)
        if arguments.grpo_vllm_python:
            process, urls, api_key = _started(run, parts.processor, stack)
        servers = [VllmServer(url, api_key, arguments.grpo_vllm_timeout) for url in urls]
        if process is not None:
            servers = [process.server]
        sync = WeightSync(servers, sync_mode(run), _weights_folder(run, parts, stack), logger.info_rank0)
        engine = VllmEngine(
            servers,
            parts.vlm,
            parts.tokenizer,
            parts.end_token_ids,
            parts.pictures,
            sync,
            max_rows=arguments.grpo_rollout_batch_size,
            timeout=arguments.grpo_vllm_timeout,
            retries=arguments.grpo_vllm_retries,
            skip_special_tokens=generating.skip_special_tokens,
            sleeps=shares_devices(run),
            process=process,
            say=logger.info_rank0,
            warn=logger.warning_rank0,
        )
        stack.callback(engine.close)
        yield engine


def check_nodes(arguments: Any) -> None:
    """Raises ArgumentError where other machines could not reach a server that the run starts."""
    here, everywhere = os.environ.get("LOCAL_WORLD_SIZE"), os.environ.get("WORLD_SIZE")
    if arguments.grpo_vllm_python and None not in (here, everywhere) and here != everywhere:
        raise ArgumentError(
            "grpo_vllm_python: the server that a run starts answers on its own machine only, and this run has several "
            f"(LOCAL_WORLD_SIZE {here}, WORLD_SIZE {everywhere}): start a server yourself and write its address as "
            "grpo_vllm_url (docs/vllm.md)."
        )


def shares_devices(run: RunArguments) -> bool:
    """Whether the server that is started computes on the training's devices."""
    started = bool(run.finetuning.grpo_vllm_python)
    return started and run.finetuning.grpo_vllm_devices is None and torch.cuda.is_available()


def sync_mode(run: RunArguments) -> Mode:
    """`weights` where the server cannot have the base weights that the adapter was trained on, or cannot serve it.

    Raises ArgumentError where `grpo_vllm_sync: adapter` is written all the same.
    """
    from lcot_plugin.rollout.vllm.weights import MAX_SERVED_RANK

    arguments = run.finetuning
    if arguments.grpo_vllm_sync == "weights" or arguments.finetuning_type != "lora":
        return "weights" if arguments.grpo_vllm_sync == "auto" else arguments.grpo_vllm_sync
    obstacle = _base_of_its_own(run)
    if obstacle is None and arguments.lora_rank > MAX_SERVED_RANK:
        obstacle = f"vLLM serves adapters up to rank {MAX_SERVED_RANK}, and lora_rank is {arguments.lora_rank}"
    if obstacle is None:
        return arguments.grpo_vllm_sync
    if arguments.grpo_vllm_sync == "adapter":
        raise ArgumentError(f"grpo_vllm_sync: adapter: {obstacle}. Write `grpo_vllm_sync: weights` (or auto).")
    return "weights"


def _base_of_its_own(run: RunArguments) -> str | None:
    """Why the adapter belongs to other weights than those of model_name_or_path, which a server has."""
    arguments, model = run.finetuning, run.model
    given = model.adapter_name_or_path or []
    # As LLaMA-Factory's init_adapter decides: all but the last are merged into the base, all where none is trained on.
    is_mergeable = not (model.quantization_bit or uses_zero_3(run) or model.use_kt or model.use_unsloth)
    all_merged = is_mergeable and (arguments.create_new_adapter or not run.training.do_train)
    if len(given) > 1 or (given and all_merged):
        return "adapters of adapter_name_or_path are merged into the base model, which the server does not have"
    if arguments.pissa_init:
        return "pissa_init changes the base weights, which the server does not have so"
    if model.resize_vocab:
        return "resize_vocab changes the embeddings, which the server does not have so"
    return None


def _started(run: RunArguments, processor: Any, stack: ExitStack) -> tuple[VllmProcess | None, list[str], str]:
    """The server of the first process, its address and key on all of them."""
    process: VllmProcess | None = None
    told: list[Any] = [None, None, None]
    if PartialState().is_main_process:
        try:
            process = stack.enter_context(_process(run, processor))
            told = [[process.server.url], process.api_key, None]
        except Exception as error:
            told[2] = error  # the others wait for what comes of it
    broadcast_object_list(told)
    urls, api_key, failure = told
    if failure is not None:
        raise failure if isinstance(failure, LcotError) else RolloutError(f"The vLLM server did not start: {failure}")
    return process, urls, api_key


def _process(run: RunArguments, processor: Any) -> VllmProcess:
    from lcot_plugin.rollout.vllm.process import ServerSettings, VllmProcess

    arguments, model = run.finetuning, run.model
    uses_adapter = sync_mode(run) != "weights"
    settings = ServerSettings(
        devices=arguments.grpo_vllm_devices,
        tensor_parallel=arguments.grpo_vllm_tensor_parallel,
        memory=arguments.grpo_vllm_memory,
        max_model_len=run.data.cutoff_len + run.generating.max_new_tokens,
        max_lora_rank=arguments.lora_rank if uses_adapter else None,
        sleep=shares_devices(run),
        extra_args=shlex.join([*_server_arguments(run, processor), *shlex.split(arguments.grpo_vllm_args or "")]),
        start_timeout=arguments.grpo_vllm_start_timeout,
        dtype=str(model.compute_dtype or torch.float32).removeprefix("torch."),
        trust_remote_code=model.trust_remote_code,
        request_timeout=arguments.grpo_vllm_timeout,
    )
    log = Path(run.training.output_dir, SERVER_LOG)
    return VllmProcess(
        arguments.grpo_vllm_python,
        model.model_name_or_path,
        settings=settings,
        log_path=log,
        say=logger.info_rank0,
    )


def _server_arguments(run: RunArguments, processor: Any) -> list[str]:
    """Those that this machine and this family need; what the user writes comes after them."""
    needed = []
    if not torch.cuda.is_available():
        # vLLM 0.32 on the CPU ends where a request with a seed has its prompt computed in pieces ("CPU Generator does
        # not use offset").
        whole = max(CPU_BATCHED_TOKENS, run.data.cutoff_len + run.generating.max_new_tokens)
        needed += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(whole)]
    if hasattr(getattr(processor, "image_processor", None), "crop_to_patches"):  # InternVL; vLLM's default is to crop
        crops = {"crop_to_patches": bool(run.model.crop_to_patches)}
        needed += ["--mm-processor-kwargs", json.dumps(crops)]
    return needed


def _weights_folder(run: RunArguments, parts: EngineParts, stack: ExitStack) -> Path:
    """Through which the policy reaches the servers; made by the first process."""
    from lcot_plugin.rollout.vllm.weights import policy_folder

    told: list[Any] = [None]
    if PartialState().is_main_process:
        parent = folder_for_weights(run, parts.num_bytes, logger.info_rank0)
        parent.mkdir(parents=True, exist_ok=True)
        # A server that the run starts is the same user's.
        for_others = not run.finetuning.grpo_vllm_python
        told = [str(stack.enter_context(policy_folder(parent, for_others=for_others)))]
    broadcast_object_list(told)
    return Path(told[0])


def folder_for_weights(run: RunArguments, num_bytes: int, say: Callable[[str], None]) -> Path:
    """The one that is written; else shared memory for a server that the run starts, if a model has ample room there
    (containers often have 64 MB of it); else output_dir."""
    arguments = run.finetuning
    output_dir = Path(run.training.output_dir).absolute()
    if arguments.grpo_vllm_weights_dir:
        return Path(arguments.grpo_vllm_weights_dir).absolute()
    if not arguments.grpo_vllm_python or not SHARED_MEMORY.is_dir():
        return output_dir
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, TIMES_THE_MODEL * num_bytes
    if free < needed:
        say(
            f"{SHARED_MEMORY} has {free / 2**30:.2f} GiB free, {needed / 2**30:.2f} would do: the policy reaches the "
            f"vLLM server through {output_dir} (grpo_vllm_weights_dir names another folder)."
        )
        return output_dir
    return SHARED_MEMORY


def weight_bytes(model: Any) -> int:
    """Of all processes together where ZeRO-3 has them in pieces."""
    return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in model.parameters())


def check_engine(parts: GrpoParts, datasets: Sequence[Any]) -> None:
    """Before the first step: that the servers serve this model as it is trained, and that vLLM can be asked for every
    prompt.

    datasets: those that are rolled out; each may be several by their names. Raises RolloutError, ArgumentError.
    """
    from lcot_plugin.rollout.vllm.engine import VllmEngine

    engine = parts.engine
    if not isinstance(engine, VllmEngine):
        return
    sets = [rows for dataset in datasets for rows in (dataset.values() if isinstance(dataset, dict) else [dataset])]
    for rows in sets:
        engine.check_prompts(record for row in rows for record in prompt_records([row]))
    for rows in sets:
        first = [rows[index] for index in range(min(NUM_CHECKED, len(rows)))]
        engine.check([parts.encode(record) for record in prompt_records(first)], parts.sampling)
