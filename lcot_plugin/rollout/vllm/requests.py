"""A prompt as vLLM's route for tokens takes it, and what it answers as completions.

In: EncodedPrompt and SamplingParams. Out: the body of a request. In: its answer. Out: Completions, whose ending and
text are those that the in-process engine would have given the same tokens.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lcot_plugin.errors import ArgumentError, RolloutError
from lcot_plugin.rollout.stopping import StopRule
from lcot_plugin.rollout.vllm.client import ServerGone, StaleWeights
from lcot_plugin.rollout.vllm.placeholders import Placeholders, token_name
from lcot_plugin.types import Completion, EncodedPrompt, Ending, PromptRecord, SamplingParams
from lcot_plugin.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

BAN = -100.0
"""Added to the logits of tokens that must not be written: the lowest bias that vLLM's documentation allows. It leaves a
token e^-100 of its probability."""
LOWEST_LOGP = -9000.0
"""vLLM writes -9999 for a log-probability of minus infinity or NaN."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""vLLM raises lower ones to the first and refuses higher ones than the second."""


def check_sampling(sampling: SamplingParams) -> None:
    """Raises ArgumentError for what vLLM would refuse, or silently change."""
    if sampling.temperature != 0 and not LOWEST_TEMPERATURE <= sampling.temperature <= HIGHEST_TEMPERATURE:
        raise ArgumentError(
            f"temperature: {sampling.temperature} cannot be had from vLLM, which samples at {LOWEST_TEMPERATURE} to "
            f"{HIGHEST_TEMPERATURE:g}, or at 0 (greedy): change it, or write `grpo_rollout_engine: transformers`."
        )
    if not 0.0 < sampling.top_p <= 1.0:
        raise ArgumentError(f"top_p: {sampling.top_p} must lie in (0, 1] for vLLM; 1 keeps all tokens.")
    if sampling.repetition_penalty <= 0:
        raise ArgumentError(f"repetition_penalty: {sampling.repetition_penalty} must be more than 0; 1 is none.")


def request_seed(seed: int, slot: int, first: int) -> int:
    """That of a prompt's completions from `first` on.

    vLLM gives completion i of a request the seed plus i, so a group that is asked for in parts, or again, is drawn with
    the same random numbers.
    """
    words = np.random.SeedSequence([seed, slot]).generate_state(1, np.uint64)
    return (int(words[0]) >> 2) + first  # fits vLLM's signed 64 bits with room for the indices


def image_part(image: Image) -> dict[str, str]:
    """A picture as vLLM takes it: lossless, under a name by which the server finds it in its cache."""
    buffer = io.BytesIO()
    # What training sees is RGB; level 1 is several times faster than the default and a little larger.
    (image if image.mode == "RGB" else image.convert("RGB")).save(buffer, "PNG", compress_level=1)
    content = buffer.getvalue()
    return {
        "type": "image_url",
        "url": f"data:image/png;base64,{base64.b64encode(content).decode()}",
        "uuid": hashlib.sha256(content).hexdigest(),
    }


@dataclass(eq=False)
class SentPrompt:
    """A prompt ready to be sent, any number of times."""

    prompt: EncodedPrompt
    token_ids: list[int]
    """Its tokens with each image collapsed to what vLLM expands."""
    images: Callable[[PromptRecord], Sequence[Image]]
    _parts: list[dict[str, str]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def content_parts(self) -> list[dict[str, str]]:
        """Its images, encoded when the first thread asks for them."""
        with self._lock:
            if self._parts is None:
                record = self.prompt.record
                pictures = self.images(record) if record.images else []
                assert len(pictures) == len(record.images), "one picture per image of the record"
                self._parts = [image_part(picture) for picture in pictures]
            return self._parts


class RequestFormat:
    """Writes requests and reads answers; the same for every rollout of an engine."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Sequence[int],
        images: Callable[[PromptRecord], Sequence[Image]],
        skip_special_tokens: bool,
    ) -> None:
        self.vlm, self.tokenizer, self.images = vlm, tokenizer, images
        self.end_token_ids = sorted(end_token_ids)
        self.skip_special_tokens = skip_special_tokens
        self.placeholders = Placeholders(vlm, tokenizer)
        self.banned = frozenset(vlm.banned_token_ids) - set(end_token_ids)
        self._bias = {str(token_id): BAN for token_id in sorted(self.banned)}

    def stop_rule(self, sampling: SamplingParams) -> StopRule:
        return StopRule(self.tokenizer, self.end_token_ids, sampling.stop_strings, self.skip_special_tokens)

    def prepare(self, prompt: EncodedPrompt) -> SentPrompt:
        """Raises as `sendable`."""
        return SentPrompt(prompt, self.sendable(prompt.record), self.images)

    def sendable(self, record: PromptRecord) -> list[int]:
        """A prompt's tokens with each image collapsed to what vLLM expands.

        Raises ArgumentError for media that vLLM cannot be sent token by token.
        """
        where = f"{record.source}, record {record.record}"
        if record.videos or record.audios:
            kind = "videos" if record.videos else "audios"
            raise ArgumentError(
                f"{where} has {kind}: `grpo_rollout_engine: vllm` takes images and text. Write "
                "`grpo_rollout_engine: transformers`, or leave such records out."
            )
        try:
            return self.placeholders.collapsed(record.input_ids, len(record.images))
        except ArgumentError as error:
            raise ArgumentError(f"{where}: {error}") from None

    def body(
        self, sent: SentPrompt, sampling: SamplingParams, *, num: int, limit: int, seed: int, adapter: str | None
    ) -> dict[str, Any]:
        """Asks for `num` completions of at most `limit` tokens. adapter: None for the base model."""
        stops = [string for string in sampling.stop_strings if string]
        parameters: dict[str, Any] = {
            "n": num,
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": max(0, sampling.top_k),
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": seed,
            "logprobs": 0,  # that of the token written, and no others
            # Exactly our end tokens end a completion: not those of the server's generation_config.json.
            "ignore_eos": True,
            "stop_token_ids": self.end_token_ids,
            "logit_bias": self._bias,
            "skip_special_tokens": self.skip_special_tokens,
            "detokenize": bool(stops),
        }
        if stops:
            parameters |= {"stop": stops, "include_stop_str_in_output": True}
        body: dict[str, Any] = {"token_ids": sent.token_ids, "sampling_params": parameters, "return_token_ids": True}
        if parts := sent.content_parts():
            body["content_parts"] = parts
        if adapter is not None:
            body["model"] = adapter
        return body

    def check_prompt(self, answer: dict[str, Any], prompt: EncodedPrompt, url: str) -> None:
        """Raises RolloutError where the server's prompt is not ours, token for token."""
        theirs = answer.get("prompt_token_ids")
        if theirs is None:
            raise RolloutError(
                f"{url} does not return the tokens of the prompt (return_token_ids), so nobody can tell whether it "
                "reads what is trained on: install a newer vLLM (docs/vllm.md names the version)."
            )
        record = prompt.record
        difference = self.placeholders.difference(record.input_ids, theirs)
        if difference is not None:
            raise RolloutError(
                f"{url} reads another prompt than is trained on ({record.source}, record {record.record}): "
                f"{difference}. {self.placeholders.advice}"
            )

    def completions(
        self,
        answer: dict[str, Any],
        *,
        num: int,
        limit: int,
        rule: StopRule,
        url: str,
    ) -> list[Completion]:
        """In the order of their index. Raises ServerGone where the server broke off, RolloutError for what cannot be
        trained on."""
        choices = sorted(answer.get("choices") or [], key=lambda choice: choice["index"])
        if len(choices) != num:
            raise RolloutError(f"{url} gave {len(choices)} completions where {num} were asked for.")
        return [self._completion(choice, limit, rule, url) for choice in choices]

    def _completion(self, choice: dict[str, Any], limit: int, rule: StopRule, url: str) -> Completion:
        reason, token_ids = choice.get("finish_reason"), choice.get("token_ids") or []
        if reason not in ("stop", "length"):
            # Aborted when the server is paused, put to sleep or shut down.
            raise ServerGone(f"{url} broke a completion off (finish_reason {reason!r}).", answering=True)
        num_kept, ending = self._ending(token_ids, limit, rule)
        if ending is None:
            if not token_ids or (reason == "stop" and not isinstance(choice.get("stop_reason"), str)):
                raise RolloutError(
                    f"{url} ended a completion of {len(token_ids)} tokens that has no end token "
                    f"(stop_reason {choice.get('stop_reason')!r}): its --override-generation-config or plugins change "
                    "what ends one. Start it without them."
                )
            # The server saw a stop string in its own way, or its context is full before ours.
            ending = Ending.STOPPED if reason == "stop" else Ending.TRUNCATED
        token_ids = token_ids[:num_kept]
        logps = self._log_probs(choice, token_ids, url)
        return Completion(token_ids, logps, ending, rule.text(token_ids))

    @staticmethod
    def _ending(token_ids: Sequence[int], limit: int, rule: StopRule) -> tuple[int, Ending | None]:
        """How many tokens there are when the completion ends by the rule of the in-process engine."""
        written: list[int] = []
        for token_id in token_ids:
            written.append(token_id)
            if (ending := rule.ending(written, limit)) is not None:
                return len(written), ending
        return len(written), None

    def _log_probs(self, choice: dict[str, Any], token_ids: Sequence[int], url: str) -> list[float]:
        entries = (choice.get("logprobs") or {}).get("content") or []
        if len(entries) < len(token_ids):
            raise RolloutError(
                f"{url} gave {len(entries)} log-probabilities for {len(token_ids)} tokens: install the vLLM that "
                "docs/vllm.md names."
            )
        logps = []
        for place, (token_id, entry) in enumerate(zip(token_ids, entries, strict=False)):
            logp = entry.get("logprob")
            if not isinstance(logp, int | float) or not math.isfinite(logp) or logp <= LOWEST_LOGP:
                raise RolloutError(
                    f"{url} gave {logp} as the log-probability of {token_name(self.tokenizer, token_id)}, token "
                    f"{place} of a completion: the model's logits are not finite. It has diverged, or overflows in the "
                    "server's precision: resume from an earlier checkpoint with a lower learning_rate, or serve it "
                    "with `--dtype bfloat16`."
                )
            if token_id in self.banned:
                raise RolloutError(
                    f"{url} wrote {token_name(self.tokenizer, token_id)}, which stands for an image or for nothing and "
                    "was excluded (logit_bias): start it without plugins that change the logits."
                )
            logps.append(float(logp))
        return logps


def check_weights(answer: dict[str, Any], *, adapter: str | None, label: str | None, url: str) -> None:
    """Raises StaleWeights where completions were not written by the weights asked for.

    adapter: its name, None for the base model, whose version is then `label`; None before anything was sent.
    """
    if adapter is not None:
        if answer.get("model") not in (None, adapter):
            raise StaleWeights(f"{url} wrote with {answer['model']!r} instead of {adapter!r}.")
        return
    if label is None:
        return
    for choice in answer.get("choices") or []:
        versions = {span["version"] for span in choice.get("weight_versions") or []}
        if versions != {label}:
            wrote = f"the weights of version {', '.join(sorted(versions))}" if versions else "unknown weights"
            raise StaleWeights(f"{url} wrote with {wrote} instead of {label}.")
