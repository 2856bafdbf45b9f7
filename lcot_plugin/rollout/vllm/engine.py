"""Rollouts by vLLM servers.

In: encoded prompts. Out: RolloutGroups with the log-probabilities of the distribution drawn from. The groups of a
rollout are asked for at once (`asking`), over all servers; what a server does not answer is asked of another. This file
holds what lasts longer than a rollout: which weights the servers have, which of them are there, the server that the run
started.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import torch

from lcot_plugin.errors import RolloutError
from lcot_plugin.rollout.vllm.agreed import agreed
from lcot_plugin.rollout.vllm.agreement import ServerFacts, check_agreement, longest_sequence, server_facts
from lcot_plugin.rollout.vllm.asking import Asking, Progress, ignore
from lcot_plugin.rollout.vllm.client import ServerGone, VllmServer
from lcot_plugin.rollout.vllm.requests import RequestFormat, check_sampling
from lcot_plugin.types import EncodedPrompt, PromptRecord, RolloutGroup, SamplingParams
from lcot_plugin.vlm import VisionLanguageModel

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

    from lcot_plugin.rollout.vllm.process import VllmProcess
    from lcot_plugin.rollout.vllm.weights import WeightSync

POLL_SECONDS = 1.0
"""How often the servers are looked at while nothing else is to be done."""
SAY_SECONDS = 30.0
TEND_SECONDS = 5.0
HUNG_SECONDS = 60.0
"""After this long without an answer, a server that the run started is started again."""
BARRIER_SECONDS = 0.05

Look = Callable[[], object]
"""Called again and again while something is waited for; what it raises ends the waiting."""


def nothing() -> None:
    """Where nobody has to look at anything."""


class VllmEngine:
    """Implements RolloutEngine; one per training process, all with the same servers."""

    def __init__(
        self,
        servers: Sequence[VllmServer],
        vlm: VisionLanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Sequence[int],
        images: Callable[[PromptRecord], Sequence[Image]],
        sync: WeightSync,
        *,
        max_rows: int | None = None,
        timeout: float = 600.0,
        retries: int = 3,
        skip_special_tokens: bool = True,
        sleeps: bool = False,
        process: VllmProcess | None = None,
        say: Callable[[str], None] = print,
        warn: Callable[[str], None] = print,
    ) -> None:
        """`images`: a prompt's pictures as the trainer's processor gets them. `max_rows`: completions in flight at
        most, None for as many as the rollout has. `timeout`: seconds that are waited for a server to come back.
        `retries`: how often a group is asked for again. `sleeps`: the servers are put to sleep outside of `policy`.
        `process`: the server among `servers` that the run started; given to the main process only."""
        assert servers, "one server at least"
        self.servers = list(servers)
        self.sync, self.process = sync, process
        self.max_rows, self.timeout, self.retries = max_rows, timeout, retries
        self.sleeps, self.say, self.warn = sleeps, say, warn
        self.requests = RequestFormat(vlm, tokenizer, end_token_ids, images, skip_special_tokens)
        self.counts: Counter[str] = Counter()
        self.seconds_waited = 0.0
        """Without a server, since `take_counts` was called last."""
        self.version: int | None = None
        """Of the weights that the servers were sent last."""
        self._tends = process is not None
        """Whether this process restarts servers and sends weights: the main one does."""
        self._gone: set[VllmServer] = set()
        self._asleep: set[VllmServer] = set()
        self._silent_since: dict[VllmServer, float] = {}
        """When a server did not answer first, while other processes are waited for."""
        self._facts: dict[VllmServer, ServerFacts] = {}
        self._warned: set[str] = set()
        self._closed = Event()

    # --- a step -------------------------------------------------------------------------------------------------------

    @contextmanager
    def policy(self, model: Any, accelerator: Any, version: int) -> Iterator[None]:
        """See RolloutEngine.policy; `generate` needs no model. Raises RolloutError where no server answers."""
        self._tends = bool(accelerator.is_main_process)
        # A rollout that was begun ahead may still be written for another process, with the weights of before.
        self._wait_for_others(accelerator)
        agreed(accelerator, self._get_ready)
        if version != self.version:
            self.sync.push(model, accelerator, version)
            self.version = version
            self._gone = {server for server in self.servers if not self.sync.is_current(server)}
        yield None
        # After an error nothing is waited for: the processes that had none would wait for ever in their turn.
        self._wait_for_others(accelerator)
        if self.sleeps:
            agreed(accelerator, self._put_to_sleep)

    def _wait_for_others(self, accelerator: Any) -> None:
        """Until no process has a rollout under way; a server that dies meanwhile is restarted for them.

        Raises RolloutError, on every process, where it cannot be."""
        if accelerator.num_processes == 1:
            return
        failure: Exception | None = None
        barrier = torch.distributed.barrier(async_op=True)
        tended = time.monotonic()
        while not barrier.is_completed():
            time.sleep(BARRIER_SECONDS)
            if self._tends and failure is None and time.monotonic() - tended > TEND_SECONDS:
                try:
                    self._look_after_all()
                except Exception as error:  # told below: the others come to this barrier too, their servers gone
                    failure = error
                tended = time.monotonic()
        barrier.wait()
        self._silent_since.clear()

        def told() -> None:
            if failure is not None:
                raise failure

        agreed(accelerator, told)

    def _get_ready(self) -> None:
        """On the main process, before the servers write."""
        self._tend()
        for server in list(self._asleep):
            try:
                self._wake(server)
            except ServerGone as error:
                self.warn(f"{error} It is left out.")
                self._gone.add(server)

    def _wake(self, server: VllmServer) -> None:
        if server in self._asleep:
            server.wake()
            self._asleep.discard(server)

    def _put_to_sleep(self) -> None:
        for server in self.servers:
            self._asleep.add(server)
            try:
                server.sleep()
            except ServerGone as error:  # it is restarted, or waited for, before the next rollout
                self.warn(f"{error} It was to be put to sleep.")

    def check(self, prompts: Sequence[EncodedPrompt], sampling: SamplingParams) -> None:
        """Whether every server serves this model as it is trained, before the first step.

        Raises ArgumentError, and RolloutError with what differs and what to write."""
        check_sampling(sampling)
        for server in self.servers:
            try:
                check_agreement(server, self.facts(server), self.requests, prompts, sampling)
            except ServerGone as error:
                raise RolloutError(f"{error} Start it before the training, or correct grpo_vllm_url.") from error

    def generate(
        self,
        model: Any,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Progress = ignore,
    ) -> list[RolloutGroup]:
        """See RolloutEngine.generate. Raises RolloutError where a group cannot be had after all retries."""
        if not prompts:
            return []
        check_sampling(sampling)
        asking = Asking(self, self.requests, prompts, sampling, slots, progress)
        asking.look()
        self.readmit(asking.look)
        if not self.available():
            self.wait_for_a_server(asking.look)
        self._learn_facts()
        self._warn_of_short_context(prompts, sampling)
        return asking.run()

    def check_prompts(self, records: Iterable[PromptRecord]) -> None:
        """Whether vLLM can be asked for every one of them; nothing is sent. Raises ArgumentError that names one that it
        cannot."""
        for record in records:
            self.requests.sendable(record)

    def close(self) -> None:
        """Ends a rollout that another thread is in, with a RolloutError there, and stops the server that the run
        started; other servers lose this run's adapter."""
        self._closed.set()
        for server in self.servers:
            server.abort()
        if self.process is not None:
            self.process.stop()
        elif self._tends:
            for server in self.servers:
                server.reopen()
            self.sync.close()

    def take_counts(self) -> dict[str, float]:
        """What happened since the last call, by the name under which it is logged."""
        counts = {name: float(self.counts[name]) for name in COUNTS} | {"rollout/seconds_waited": self.seconds_waited}
        self.counts.clear()
        self.seconds_waited = 0.0
        return counts

    # --- what a rollout asks (the Pool of `asking`) -------------------------------------------------------------------

    def available(self) -> list[VllmServer]:
        """The servers that are not left out."""
        return [server for server in self.servers if server not in self._gone]

    def leave_out(self, server: VllmServer) -> None:
        """For the rest of the rollout, unless no other is left."""
        self._gone.add(server)

    def facts(self, server: VllmServer) -> ServerFacts:
        if server not in self._facts:
            self._facts[server] = server_facts(server)
        return self._facts[server]

    def weights(self, server: VllmServer) -> tuple[str | None, str | None]:
        """The adapter to ask for, None for the base model; and the label that its completions must have, None where
        there is none."""
        if self.version is None:
            return None, None
        if self.sync.mode == "adapter":
            return self.sync.name, None
        return None, self.sync.name

    def replay(self, server: VllmServer) -> bool:
        """Sends a server the current weights once more. False where another process does that. Raises ServerGone."""
        if self._tends and self.version is not None:
            self.sync.replay(server)
        return self._tends

    def readmit(self, look: Look = nothing) -> None:
        """Servers that were left out and answer again take part again, once they have the current weights."""
        self._tend(look)
        for server in list(self._gone):
            self._try_again(server)

    def wait_for_a_server(self, look: Look) -> None:
        """Until one answers. Raises RolloutError after `timeout` seconds."""
        begin = said = time.monotonic()
        restarted = False
        while True:
            look()
            self.readmit(look)
            now = time.monotonic()
            if self.available():
                self.seconds_waited += now - begin
                return
            if now - begin > self.timeout:
                raise RolloutError(
                    f"No vLLM server answers any more: {self.names()}. Start them again, see their logs, and go on "
                    "with `resume_from_checkpoint`."
                )
            if self.process is not None and not restarted and now - begin > HUNG_SECONDS:
                restarted = True
                self._restart(self.process, f"has not answered for {now - begin:.0f} s", look)
                continue
            if now - said > SAY_SECONDS:
                said = now
                self.warn(f"No vLLM server answers, waited {now - begin:.0f} of {self.timeout:g} s: {self.names()}")
            time.sleep(POLL_SECONDS)

    def check_open(self) -> None:
        """Raises RolloutError after `close`."""
        if self._closed.is_set():
            raise RolloutError("The vLLM engine was closed while a rollout was written.")

    def names(self) -> str:
        return ", ".join(server.url for server in self.servers)

    # --- servers that come and go -------------------------------------------------------------------------------------

    def _tend(self, look: Look = nothing) -> None:
        """Restarts the server that the run started, if it has ended."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self._restart(self.process, f"ended with exit code {code}", look)

    def _look_after_all(self) -> None:
        """For other processes' sake: this one has its completions."""
        self._tend()
        now = time.monotonic()
        for server in self.servers:
            if not server.health():
                self._gone.add(server)
                silent = now - self._silent_since.setdefault(server, now)
                if self.process is not None and server is self.process.server and silent > HUNG_SECONDS:
                    self._silent_since.pop(server)
                    self._restart(self.process, f"has not answered for {silent:.0f} s")
                continue
            self._silent_since.pop(server, None)
            if server in self._gone:
                self._try_again(server)

    def _restart(self, process: VllmProcess, why: str, look: Look = nothing) -> None:
        """And gives it the current weights. Where it ends once more meanwhile it is left out."""
        look()  # a scheduler that ends the run may have ended the server first
        self.warn(f"The vLLM server {why}: it is started again. Its log is {process.log_path}")
        begin = time.monotonic()
        server = process.restart(look)
        self.counts["rollout/server_restarts"] += 1
        self.seconds_waited += time.monotonic() - begin
        self._asleep.discard(server)
        self._gone.add(server)
        self._try_again(server)

    def _try_again(self, server: VllmServer) -> None:
        """A server that was left out takes part again, if it answers and has the current weights."""
        if not server.health():
            return
        try:
            if self._tends:
                self._wake(server)
            self.facts(server)
            if self.sync.has_current(server) or self.replay(server):
                self._gone.discard(server)
        except ServerGone:
            return

    def _learn_facts(self) -> None:
        for server in self.available():
            try:
                self.facts(server)
            except ServerGone as error:
                self.warn(f"{error} It is left out.")
                self.leave_out(server)

    def _warn_of_short_context(self, prompts: Sequence[EncodedPrompt], sampling: SamplingParams) -> None:
        """A completion that meets the server's limit counts as truncated; it is not worth ending a run for."""
        known = [facts.max_model_len for facts in self._facts.values() if facts.max_model_len is not None]
        longest = longest_sequence(prompts, sampling)
        if known and longest > min(known) and "context" not in self._warned:
            self._warned.add("context")
            self.warn(
                f"A prompt with its completion may have {longest:,} tokens and a vLLM server reads {min(known):,} at "
                f"most: such completions are truncated there. Start it with --max-model-len {longest}."
            )


COUNTS = ("rollout/retries", "rollout/stale", "rollout/server_restarts")
"""Groups asked for again; those of them written by other weights than asked for; restarts."""
