"""Before the first step: whether a server serves this model, and in a way that can be trained on.

In: a server, some prompts. Out: what the engine must know of the server, or a RolloutError that says what differs and
what to write. Nothing is assumed from names or configuration files where asking shows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lcot_plugin.errors import RolloutError
from lcot_plugin.rollout.stopping import token_limit
from lcot_plugin.rollout.vllm.client import VllmServer
from lcot_plugin.rollout.vllm.requests import RequestFormat
from lcot_plugin.types import EncodedPrompt, SamplingParams

GENERATE = "/inference/v1/generate"
FAVOURED = 100.0
"""Bias that makes a token the most probable one."""
CERTAIN = -1e-3
"""Above this lies the log-probability of a token that is the only one left to draw."""


@dataclass(frozen=True)
class ServerFacts:
    """What the engine must know of a server."""

    max_model_len: int | None
    """Tokens of prompt and completion together."""
    max_num_seqs: int | None
    """The most completions of one request; None where the server does not say."""
    takes_images: bool


def server_facts(server: VllmServer) -> ServerFacts:
    """Raises ServerGone, and RolloutError for a server that is too old or no vLLM."""
    capabilities = server.capabilities()
    if not capabilities.offers(GENERATE):
        raise RolloutError(
            f"{server.url} has no route {GENERATE}: start vLLM with --enable-scale-out. A vLLM that does not know this "
            "argument is too old: install the version that docs/vllm.md names."
        )
    base = next((model for model in server.models() if model.parent is None), None)
    if base is None:
        raise RolloutError(f"{server.url} serves no model: see its log.")
    return ServerFacts(
        max_model_len=base.max_model_len,
        max_num_seqs=_max_num_seqs(server) if capabilities.offers("/server_info") else None,
        takes_images=not capabilities.generate_fields or "content_parts" in capabilities.generate_fields,
    )


def _max_num_seqs(server: VllmServer) -> int | None:
    """From the configuration that a server with VLLM_SERVER_DEV_MODE=1 shows; its layout is not promised."""
    try:
        config = server.server_info().get("vllm_config")
    except RolloutError:
        return None
    scheduler = config.get("scheduler_config") if isinstance(config, dict) else None
    value = scheduler.get("max_num_seqs") if isinstance(scheduler, dict) else None
    return value if isinstance(value, int) and value > 0 else None


def check_agreement(
    server: VllmServer,
    facts: ServerFacts,
    requests: RequestFormat,
    prompts: Sequence[EncodedPrompt],
    sampling: SamplingParams,
) -> None:
    """Raises RolloutError for the first thing that differs."""
    check_length(server, facts, prompts, sampling)
    if not facts.takes_images and any(prompt.record.images for prompt in prompts):
        raise RolloutError(
            f"{server.url} takes token ids without images only (no content_parts): install the vLLM that docs/vllm.md "
            "names."
        )
    check_vocabulary(server, requests)
    check_log_probs(server, requests)
    for prompt in prompts:
        check_prompt(server, requests, prompt)


def check_length(
    server: VllmServer, facts: ServerFacts, prompts: Sequence[EncodedPrompt], sampling: SamplingParams
) -> None:
    """Whether the longest prompt has room for its completion."""
    needed = longest_sequence(prompts, sampling)
    if facts.max_model_len is not None and needed > facts.max_model_len:
        raise RolloutError(
            f"{server.url} reads and writes {facts.max_model_len:,} tokens at most, and a prompt with its completion "
            f"needs {needed:,}: start it with --max-model-len {needed} (in grpo_vllm_args for one that the run "
            "starts), or lower max_new_tokens or cutoff_len."
        )


def longest_sequence(prompts: Sequence[EncodedPrompt], sampling: SamplingParams) -> int:
    """Tokens of the longest prompt with its completion."""
    return max((len(prompt.record.input_ids) + token_limit(prompt, sampling) for prompt in prompts), default=0)


def _probe(server: VllmServer, token_ids: Sequence[int], **parameters: Any) -> dict[str, Any]:
    """One token after some text, greedily unless told otherwise."""
    sampling = {"n": 1, "max_tokens": 1, "temperature": 0.0, "logprobs": 0, "detokenize": False} | parameters
    return server.generate({"token_ids": list(token_ids), "sampling_params": sampling, "return_token_ids": True})


def check_vocabulary(server: VllmServer, requests: RequestFormat) -> None:
    """Whether its logits have as many columns as ours: vLLM refuses a bias on a token that it does not have."""
    size = requests.vlm.vocab_size
    text = _some_text(requests)
    for token_id, ours in ((size - 1, True), (size, False)):
        try:
            _probe(server, text, logit_bias={str(token_id): 0.0})
        except RolloutError as error:
            if ours and _is_vocabulary_refusal(error):
                raise RolloutError(_other_vocabulary(server, size, error)) from None
            if ours or not _is_vocabulary_refusal(error):
                raise
        else:
            if not ours:
                raise RolloutError(_other_vocabulary(server, size, None))


def _is_vocabulary_refusal(error: RolloutError) -> bool:
    return "vocab" in str(error).lower()


def _other_vocabulary(server: VllmServer, size: int, error: RolloutError | None) -> str:
    found = re.search(r"ocabulary size: (\d+)", str(error)) if error else None
    theirs = f"{int(found[1]):,}" if found else "fewer" if error else "more"
    return (
        f"{server.url} serves another model: its vocabulary has {theirs} tokens and that of model_name_or_path "
        f"{size:,}. Serve the folder that model_name_or_path names (where resize_vocab changed the "
        "vocabulary, a folder that the model was saved to afterwards)."
    )


def check_log_probs(server: VllmServer, requests: RequestFormat) -> None:
    """Whether log-probabilities are those of the distribution drawn from.

    The only token that top_k leaves has log-probability 0 in it, whatever it has in the model itself: little, where a
    bias put it first. Two are tried, since the model may be certain of one anyway.
    """
    text = _some_text(requests)
    logps = []
    for token_id in text:
        answer = _probe(server, text, logit_bias={str(token_id): FAVOURED}, temperature=1.0, top_k=1)
        choice = (answer.get("choices") or [{}])[0]
        entries = (choice.get("logprobs") or {}).get("content") or [{}]
        logps.append(entries[0].get("logprob"))
    if any(not isinstance(logp, int | float) for logp in logps):
        raise RolloutError(f"{server.url} gives no log-probabilities: install the vLLM that docs/vllm.md names.")
    if min(logps) < CERTAIN:
        raise RolloutError(
            f"{server.url} gives the log-probabilities of the model before temperature and truncation, and training "
            "needs those of the distribution drawn from: start it with `--logprobs-mode processed_logprobs`."
        )


def check_prompt(server: VllmServer, requests: RequestFormat, prompt: EncodedPrompt) -> None:
    """Whether the server reads this prompt, its images among it, as the trainer does."""
    sent = requests.prepare(prompt)
    one_token = SamplingParams(num_generations=1, max_new_tokens=1, temperature=0.0)
    answer = server.generate(requests.body(sent, one_token, num=1, limit=1, seed=0, adapter=None))
    requests.check_prompt(answer, prompt, server.url)


def _some_text(requests: RequestFormat) -> list[int]:
    """Two different tokens at least, none of which stands for an image or ends an answer."""
    size = min(len(requests.tokenizer), requests.vlm.vocab_size)
    unusable = requests.banned | set(requests.end_token_ids) | set(requests.tokenizer.all_special_ids)
    usable = [token_id for token_id in range(size) if token_id not in unusable]
    assert len(usable) >= 2, "a vocabulary of special tokens alone"
    return [usable[len(usable) // 3], usable[2 * len(usable) // 3]]
