"""The groups of one rollout, asked of several servers at once.

In: prompts, and a pool of servers. Out: their groups, in order. A request goes to the server with the fewest
completions in flight. The calling thread hands out the requests, takes the answers and decides on failures; the threads
of the executor wait for servers and read answers, and end with the rollout.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from threading import Event
from typing import Protocol

from lcot_plugin.errors import RolloutError
from lcot_plugin.rollout.stopping import token_limit
from lcot_plugin.rollout.vllm.agreement import ServerFacts
from lcot_plugin.rollout.vllm.client import ServerGone, StaleWeights, VllmServer
from lcot_plugin.rollout.vllm.requests import RequestFormat, SentPrompt, check_weights, request_seed
from lcot_plugin.types import Completion, EncodedPrompt, RolloutGroup, SamplingParams

Progress = Callable[[int, int], None]
"""Called with the numbers of completions just ended and of tokens just written."""

MAX_REQUESTS = 256
"""In flight at once: each has a thread and a connection."""
BATCHES = 2
"""In flight at one server, in completions that it writes at once: more than one, since a request counts until its last
completion has ended."""
LOOK_SECONDS = 0.5
"""How long the calling thread sleeps at most: then it looks at what is to end the rollout, which `progress` may raise,
and at retries that are due."""
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds before a request is made again of the same server."""
STALE_SECONDS = 2.0
"""The same, while another process sends the server its weights."""


def ignore(num_ended: int, num_tokens: int) -> None:
    """The progress of nobody."""


class Pool(Protocol):
    """The servers, as a rollout sees them; VllmEngine."""

    counts: Counter[str]
    retries: int
    timeout: float
    max_rows: int | None
    servers: list[VllmServer]
    warn: Callable[[str], None]

    def available(self) -> list[VllmServer]: ...
    def leave_out(self, server: VllmServer) -> None: ...
    def facts(self, server: VllmServer) -> ServerFacts: ...
    def weights(self, server: VllmServer) -> tuple[str | None, str | None]: ...
    def replay(self, server: VllmServer) -> bool: ...
    def wait_for_a_server(self, look: Callable[[], object]) -> None: ...
    def check_open(self) -> None: ...
    def names(self) -> str: ...


@dataclass(eq=False)
class Job:
    """Some completions of one prompt, asked for in one request."""

    prompt: int
    first: int
    """Index of its first completion in the group."""
    num: int
    failures: int = 0
    not_before: float = 0.0
    """time.monotonic() of the next attempt."""
    failed_at: VllmServer | None = None
    """The server that failed last."""
    begun: float = 0.0
    stale_since: float | None = None
    """When it first came back written by other weights than asked for."""


class Asking:
    """One call of `generate`."""

    def __init__(
        self,
        pool: Pool,
        requests: RequestFormat,
        prompts: Sequence[EncodedPrompt],
        sampling: SamplingParams,
        slots: Sequence[int],
        progress: Progress,
    ) -> None:
        self.pool, self.requests, self.sampling, self.progress = pool, requests, sampling, progress
        self.prompts, self.slots = list(prompts), list(slots)
        self.greedy = sampling.temperature == 0
        self.rule = requests.stop_rule(sampling)
        self.sent = [requests.prepare(prompt) for prompt in prompts]
        self.written: list[dict[int, Completion]] = [{} for _ in prompts]
        self.waiting: deque[Job] = deque()
        self.running: dict[Future[list[Completion]], tuple[Job, VllmServer]] = {}
        self.rows: Counter[VllmServer] = Counter()
        """Completions in flight."""
        self.replayed: dict[VllmServer, float] = {}
        """When a server was sent its weights again: what was asked of it before may still come back stale."""
        self.stopped = Event()

    def look(self) -> None:
        """Raises where the rollout is to end: RolloutError where the engine was closed, whatever `progress` raises on a
        signal."""
        self.pool.check_open()
        self.progress(0, 0)

    def run(self) -> list[RolloutGroup]:
        self.waiting.extend(self._jobs())
        executor = ThreadPoolExecutor(min(MAX_REQUESTS, len(self.waiting)), thread_name_prefix="lcot-vllm")
        try:
            while self.waiting or self.running:
                self.look()
                self._hand_out(executor)
                self._take()
        finally:
            # Also on Ctrl-C: threads that wait for an answer are woken, and nothing of the rollout goes on.
            self.stopped.set()
            for server in self.pool.servers:
                server.abort()
            executor.shutdown(cancel_futures=True)
            for server in self.pool.servers:
                server.reopen()
        return [RolloutGroup(prompt, self._group(own)) for prompt, own in zip(self.prompts, self.written, strict=True)]

    def _group(self, own: dict[int, Completion]) -> list[Completion]:
        """A greedy group is one completion, so often."""
        if self.greedy:
            only = own[0]
            return [
                replace(only, token_ids=list(only.token_ids), sampler_logps=list(only.sampler_logps))
                for _ in range(self.sampling.num_generations)
            ]
        return [own[index] for index in range(self.sampling.num_generations)]

    def _jobs(self) -> list[Job]:
        """Every prompt's group, cut where no server writes so many completions at once."""
        if self.greedy:  # of which vLLM writes one per request, and all are the same
            return [Job(prompt, 0, 1) for prompt in range(len(self.prompts))]
        group = self.sampling.num_generations
        sizes = [self.pool.facts(server).max_num_seqs for server in self.pool.available()]
        most = min([group, *(size for size in (*sizes, self.pool.max_rows) if size)])
        return [
            Job(prompt, first, min(most, group - first))
            for prompt in range(len(self.prompts))
            for first in range(0, group, most)
        ]

    # --- handing out --------------------------------------------------------------------------------------------------

    def _hand_out(self, executor: ThreadPoolExecutor) -> None:
        """Starts as many requests as may be in flight."""
        if not self.pool.available():
            if self.running:
                return
            self.pool.wait_for_a_server(self.look)
        now = time.monotonic()
        for _ in range(len(self.waiting)):
            job = self.waiting.popleft()
            server = self._least_busy(job)
            if job.not_before > now or not self._has_room(job, server):
                self.waiting.append(job)
                continue
            job.begun = now
            self.rows[server] += job.num
            self.running[executor.submit(self._ask, job, server)] = (job, server)

    def _has_room(self, job: Job, server: VllmServer) -> bool:
        """What waits in a server's queue runs out of time there."""
        if len(self.running) >= MAX_REQUESTS:
            return False
        limit, batch = self.pool.max_rows, self.pool.facts(server).max_num_seqs
        fits = limit is None or self.rows.total() + job.num <= limit or not self.running
        return fits and (batch is None or not self.rows[server] or self.rows[server] + job.num <= BATCHES * batch)

    def _least_busy(self, job: Job) -> VllmServer:
        """Another than the one that failed last, where there is one."""
        available = self.pool.available()
        others = [server for server in available if server is not job.failed_at] or available
        return min(others, key=lambda server: self.rows[server])

    # --- in a thread --------------------------------------------------------------------------------------------------

    def _ask(self, job: Job, server: VllmServer) -> list[Completion]:
        prompt, sent = self.prompts[job.prompt], self.sent[job.prompt]
        limit = token_limit(prompt, self.sampling)
        adapter, label = self.pool.weights(server)
        body = self._body(job, sent, limit, adapter)
        if self.stopped.is_set():
            raise ServerGone("the rollout was stopped")
        answer = server.generate(body)
        check_weights(answer, adapter=adapter, label=label, url=server.url)
        self.requests.check_prompt(answer, prompt, server.url)
        return self.requests.completions(
            answer,
            num=job.num,
            limit=limit,
            rule=self.rule,
            url=server.url,
        )

    def _body(self, job: Job, sent: SentPrompt, limit: int, adapter: str | None) -> dict[str, object]:
        seed = request_seed(self.sampling.seed, self.slots[job.prompt], job.first)
        return self.requests.body(sent, self.sampling, num=job.num, limit=limit, seed=seed, adapter=adapter)

    # --- taking answers -----------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Waits a little for answers and takes those that are there."""
        if not self.running:
            # Every job waits for its next attempt.
            soonest = min((job.not_before for job in self.waiting), default=0.0)
            time.sleep(min(LOOK_SECONDS, max(0.0, soonest - time.monotonic())))
            return
        done, _ = wait(self.running, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            job, server = self.running.pop(future)
            self.rows[server] -= job.num
            try:
                completions = future.result()
            except (ServerGone, StaleWeights) as error:
                self._failed(job, server, error)
            else:
                self._succeeded(job, completions)

    def _succeeded(self, job: Job, completions: list[Completion]) -> None:
        for index, completion in enumerate(completions):
            self.written[job.prompt][job.first + index] = completion
        num_ended = self.sampling.num_generations if self.greedy else job.num
        self.progress(num_ended, sum(len(completion.token_ids) for completion in completions))

    def _failed(self, job: Job, server: VllmServer, error: RolloutError) -> None:
        """Asks again, elsewhere where there is an elsewhere. Raises RolloutError after the last retry."""
        self.pool.check_open()
        self.pool.counts["rollout/retries"] += 1
        if isinstance(error, StaleWeights):
            self.pool.counts["rollout/stale"] += 1
            if not self._sends_weights(job, server) and self._waits_for_weights(job):
                job.not_before = time.monotonic() + STALE_SECONDS
                self.waiting.append(job)
                return
        job.failures += 1
        if job.failures > self.pool.retries:
            raise RolloutError(
                f"A group of completions was asked for {job.failures} times in vain (grpo_vllm_retries: "
                f"{self.pool.retries}). The last error: {error} Servers: {self.pool.names()}. See their logs; where "
                "they are only slow, raise grpo_vllm_timeout or lower grpo_rollout_batch_size, and go on with "
                "`resume_from_checkpoint`."
            ) from error
        gone = isinstance(error, ServerGone) and not error.answering
        if not gone or server in self.pool.available():  # a server that dies ends many requests at once
            self.pool.warn(f"{error} Its completions are asked for again.")
        if gone:
            self.pool.leave_out(server)
        job.failed_at = server
        elsewhere = any(other is not server for other in self.pool.available())
        job.not_before = time.monotonic() + (0.0 if elsewhere else backoff(job.failures))
        self.waiting.append(job)

    def _sends_weights(self, job: Job, server: VllmServer) -> bool:
        """Sends a server its weights again, once for all requests that came back stale; False where another process of
        the training does that."""
        if job.begun < self.replayed.get(server, -1.0):
            return True
        try:
            sends = self.pool.replay(server)
        except ServerGone:
            self.pool.leave_out(server)
            return True
        self.replayed[server] = time.monotonic()
        return sends

    def _waits_for_weights(self, job: Job) -> bool:
        """Whether there is still time for the other process to send them."""
        now = time.monotonic()
        job.stale_since = now if job.stale_since is None else job.stale_since
        return now - job.stale_since < self.pool.timeout


def backoff(failures: int) -> float:
    """Seconds before the next attempt, spread so that the processes' requests do not come back at one moment."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 2**failures) * random.uniform(0.5, 1.5)
