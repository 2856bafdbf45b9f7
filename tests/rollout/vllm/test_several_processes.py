"""The engine in several processes of one training: threads stand in for them, with one server."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from rollout.vllm.fake_server import fake_servers, make_engine, prompt, wait_until, with_process

from lcot_plugin.errors import RolloutError
from lcot_plugin.rollout.vllm import agreed, asking, engine
from lcot_plugin.types import SamplingParams

SAMPLING = SamplingParams(num_generations=4, max_new_tokens=10, temperature=1.0, seed=5)
PROMPTS = [prompt("how many"), prompt("why")]
ALONE_SECONDS = 20.0
"""After which a process that waits for another one gives up."""


class Ranks:
    """Two processes' exchanges; each process is a thread that says its rank."""

    def __init__(self):
        self.local = threading.local()
        self.meeting, self.exchange = threading.Barrier(2), threading.Barrier(2)
        self.told = None

    def barrier(self, async_op):
        done = threading.Event()
        threading.Thread(target=lambda: (self.meeting.wait(ALONE_SECONDS), done.set()), daemon=True).start()
        return SimpleNamespace(is_completed=done.is_set, wait=lambda: done.wait(ALONE_SECONDS))

    def broadcast(self, objects):
        if self.local.rank == 0:
            self.told = list(objects)
        self.exchange.wait(ALONE_SECONDS)
        objects[:] = self.told
        self.exchange.wait(ALONE_SECONDS)

    def run(self, *functions):
        """One per rank, with its accelerator; a result or an error of each."""

        def one(rank):
            self.local.rank = rank
            accelerator = SimpleNamespace(is_main_process=rank == 0, num_processes=2)
            try:
                return functions[rank](accelerator)
            except Exception as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))


@pytest.fixture
def ranks(monkeypatch):
    made = Ranks()
    monkeypatch.setattr(engine.torch.distributed, "barrier", made.barrier)
    monkeypatch.setattr(agreed, "broadcast_object_list", made.broadcast)
    for module, name in ((asking, "FIRST_BACKOFF"), (asking, "STALE_SECONDS"), (engine, "POLL_SECONDS")):
        monkeypatch.setattr(module, name, 0.005)
    monkeypatch.setattr(engine, "TEND_SECONDS", 0.0)
    return made


@pytest.fixture
def server():
    with fake_servers() as (server,):
        yield server


def generate(made):
    return made.engine.generate(None, PROMPTS, SAMPLING, range(2))


def step(made, accelerator, version, done=None):
    """done: set when this process has its completions, and waits for the other's."""
    with made.engine.policy(None, accelerator, version):
        groups = generate(made)
        if done is not None:
            done.set()
        return groups


def test_new_weights_wait_for_what_another_process_writes_ahead(server, ranks):
    first, second = make_engine([server]), make_engine([server])
    ranks.run(lambda a: step(first, a, 0), lambda a: step(second, a, 0))
    server.seconds = 0.3
    in_flight = []
    first.sync.before_send = lambda: in_flight.append(server.in_flight)

    def behind(accelerator):
        ahead = generate(second)
        with second.engine.policy(None, accelerator, 1):
            return ahead

    def before(accelerator):
        wait_until(lambda: server.in_flight > 0)
        with first.engine.policy(None, accelerator, 1):
            return server.version

    assert ranks.run(before, behind)[0] == "policy-1"
    assert in_flight == [0]
    assert second.engine.take_counts()["rollout/stale"] == 0


def test_a_server_that_dies_while_another_process_writes_is_looked_after(server, ranks):
    first, second, done = with_process(server), make_engine([server]), threading.Event()

    def other(accelerator):
        with second.engine.policy(None, accelerator, 3):
            assert done.wait(ALONE_SECONDS)
            server.kill()
            first.process.ended = 137
            return generate(second)

    groups = ranks.run(lambda a: step(first, a, 3, done), other)
    assert [len(found) for found in groups] == [2, 2]
    assert first.process.restarts == 1 and server.version == "policy-3"


def test_a_server_that_hangs_while_another_process_writes_is_restarted(server, ranks, monkeypatch):
    monkeypatch.setattr(engine, "HUNG_SECONDS", 0.05)
    first, second, done = with_process(server), make_engine([server]), threading.Event()

    def other(accelerator):
        with second.engine.policy(None, accelerator, 3):
            assert done.wait(ALONE_SECONDS)
            server.kill()  # its process is still there
            return generate(second)

    groups = ranks.run(lambda a: step(first, a, 3, done), other)
    assert [len(found) for found in groups] == [2, 2] and first.process.restarts == 1


def test_a_server_that_cannot_be_restarted_ends_every_process(server, ranks):
    first, second, done = with_process(server), make_engine([server], timeout=0.1), threading.Event()

    def fail(look):
        first.process.ended = None
        raise RolloutError("out of memory")

    first.process.restart = fail

    def other(accelerator):
        with second.engine.policy(None, accelerator, 3):
            assert done.wait(ALONE_SECONDS)
            server.kill()
            first.process.ended = 137
            with pytest.raises(RolloutError, match="No vLLM server answers"):
                generate(second)

    errors = ranks.run(lambda a: step(first, a, 3, done), other)
    assert [str(error) for error in errors] == [
        "out of memory",
        "Process 0 could not serve the policy: RolloutError: out of memory",
    ]
    assert all(error.agreed for error in errors)


@pytest.mark.parametrize("mode", ["weights", "adapter"])
def test_a_server_with_other_weights_takes_part_when_it_has_these(server, mode):
    """Not the process that sends them."""
    made = make_engine([server], mode=mode)
    made.sync.version, made.sync.name = 3, "policy-3"
    made.engine.version = 3
    made.engine.leave_out(made.clients[0])
    made.engine.readmit()
    assert not made.engine.available()
    server.version = "policy-3"
    server.adapters.add("policy-3")
    made.engine.readmit()
    assert made.engine.available() == made.clients and not made.sync.replays


def test_after_an_error_nobody_is_waited_for(server, monkeypatch):
    made = make_engine([server])
    done = SimpleNamespace(is_completed=lambda: True, wait=lambda: None)
    waits = []
    monkeypatch.setattr(engine.torch.distributed, "barrier", lambda async_op: waits.append(1) or done)
    monkeypatch.setattr(agreed, "broadcast_object_list", lambda told: None)
    several = SimpleNamespace(is_main_process=True, num_processes=2)
    with pytest.raises(KeyError), made.engine.policy(None, several, 3):
        raise KeyError
    assert waits == [1]  # before the weights were sent
