import _thread
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rollout.vllm.fake_server import (
    MAIN_PROCESS,
    fake_servers,
    make_engine,
    parts,
    prompt,
    wait_until,
    with_process,
)

from lcot_plugin.errors import ArgumentError, RolloutError
from lcot_plugin.rollout.vllm import asking, engine
from lcot_plugin.types import Ending, SamplingParams

SAMPLING = SamplingParams(num_generations=4, max_new_tokens=10, temperature=1.0, seed=5)
PROMPTS = [prompt("how many"), prompt("which", num_images=1), prompt("what is the sum", num_images=2), prompt("why")]
SLOTS = range(len(PROMPTS))


@pytest.fixture(autouse=True)
def quick_and_tidy(monkeypatch):
    """No waiting between attempts; no thread of a rollout is left."""
    monkeypatch.setattr(asking, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(asking, "STALE_SECONDS", 0.001)
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.01)
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lcot-vllm")]


@pytest.fixture
def server():
    with fake_servers() as (server,):
        yield server


@pytest.fixture
def two_servers():
    with fake_servers(2) as servers:
        yield servers


def token_ids(groups):
    return [[completion.token_ids for completion in group.completions] for group in groups]


def generate(made, sampling=SAMPLING, prompts=PROMPTS, slots=None, **settings):
    slots = range(len(prompts)) if slots is None else slots
    return made.engine.generate(None, prompts, sampling, slots, **settings)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_groups_come_in_the_order_of_the_prompts(server):
    made = make_engine([server])
    groups = generate(made)
    assert [group.prompt for group in groups] == PROMPTS
    assert [len(group.completions) for group in groups] == [4] * 4
    assert len(server.bodies) == 4 and all(body["sampling_params"]["n"] == 4 for body in server.bodies)
    assert generate(made, prompts=[]) == []
    # A slot decides the draw, wherever its prompt stands.
    assert token_ids(generate(made, prompts=PROMPTS[::-1], slots=range(4)[::-1])) == token_ids(groups)[::-1]
    assert token_ids(generate(made, replace(SAMPLING, seed=6))) != token_ids(groups)


def test_a_group_that_is_cut_is_the_same_group(server):
    whole = token_ids(generate(make_engine([server])))
    server.bodies.clear()
    server.max_num_seqs = 3
    made = make_engine([server])
    assert token_ids(generate(made)) == whole
    assert sorted(body["sampling_params"]["n"] for body in server.bodies) == [1] * 4 + [3] * 4
    assert token_ids(generate(make_engine([server], max_rows=2))) == whole


def test_a_greedy_group_is_one_completion_repeated(server):
    ended = []
    (group,) = generate(
        make_engine([server]),
        replace(SAMPLING, temperature=0.0),
        PROMPTS[:1],
        progress=lambda *numbers: ended.append(numbers),
    )
    assert len(server.bodies) == 1 and server.bodies[0]["sampling_params"]["n"] == 1
    assert len(group.completions) == 4 and len({id(completion) for completion in group.completions}) == 4
    assert len({tuple(completion.token_ids) for completion in group.completions}) == 1
    assert [numbers for numbers in ended if numbers[0]] == [(4, len(group.completions[0].token_ids))]


def test_a_prompts_own_limit_is_sent(server):
    (group,) = generate(make_engine([server]), prompts=[prompt(max_new_tokens=2)])
    assert server.bodies[0]["sampling_params"]["max_tokens"] == 2
    assert all(len(completion.token_ids) <= 2 for completion in group.completions)
    assert any(completion.ending is Ending.TRUNCATED for completion in group.completions)


def test_progress_is_told_by_the_calling_thread(server):
    numbers, threads = [], set()

    def progress(*ended):
        numbers.append(ended)
        threads.add(threading.current_thread())

    groups = generate(make_engine([server]), progress=progress)
    assert threads == {threading.current_thread()}
    assert sum(ended for ended, _ in numbers) == 16
    assert sum(written for _, written in numbers) == sum(len(ids) for group in token_ids(groups) for ids in group)


def test_no_more_completions_are_in_flight_than_allowed(server):
    server.waits_for = 8  # each answer waits until so many completions are in flight
    generate(make_engine([server], max_rows=8))
    assert server.most_in_flight == 8
    server.waits_for = 16
    generate(make_engine([server]))
    assert server.most_in_flight == 16
    server.waits_for = 0
    # Nor more than two of the server's batches.
    server.most_in_flight, server.max_num_seqs = 0, 3
    generate(make_engine([server]))
    assert server.most_in_flight <= 6


def test_what_cannot_be_drawn_is_refused_before_anything_is_sent(server):
    made = make_engine([server])
    with pytest.raises(ArgumentError, match="temperature"):
        generate(made, replace(SAMPLING, temperature=3.0))
    with pytest.raises(ArgumentError, match="videos"):
        generate(made, prompts=[prompt(videos=["a"])])
    assert not server.bodies


def test_a_context_that_is_too_short_is_told_once(server):
    server.max_model_len = 12
    made = make_engine([server])
    generate(made)
    generate(made)
    assert len([said for said in made.warnings if "--max-model-len" in said]) == 1


# --- several servers, and such as fail --------------------------------------------------------------------------------


def test_servers_share_the_groups(two_servers):
    made = make_engine(two_servers)
    for server in two_servers:
        server.waits_for = 8
    generate(made)
    assert [len(server.bodies) for server in two_servers] == [2, 2]


@pytest.mark.parametrize("status", [500, 503])
def test_a_request_that_failed_is_made_again(server, status):
    expected = token_ids(generate(make_engine([server])))
    server.failures.extend([status, status])
    made = make_engine([server])
    assert token_ids(generate(made)) == expected
    assert made.engine.take_counts()["rollout/retries"] == 2
    assert made.engine.take_counts()["rollout/retries"] == 0


def test_a_request_that_failed_goes_to_the_other_server(two_servers):
    first, second = two_servers
    first.failures.append(500)
    made = make_engine(two_servers)
    generate(made, prompts=PROMPTS[:1])
    assert len(first.bodies) == 1 and len(second.bodies) == 1


def test_a_dead_servers_groups_go_to_the_other_until_it_is_back(two_servers):
    first, second = two_servers
    made = make_engine(two_servers)
    expected = token_ids(generate(made))
    for server in two_servers:
        server.bodies.clear()
    first.kill()
    assert token_ids(generate(made)) == expected
    assert len(second.bodies) == 4 and len([said for said in made.warnings if first.url in said]) == 1
    assert token_ids(generate(made)) == expected and len(second.bodies) == 8
    first.start()
    assert token_ids(generate(made)) == expected and first.bodies


def test_a_server_that_dies_in_the_middle_loses_nothing(two_servers):
    first, _ = two_servers
    made = make_engine(two_servers)
    expected = token_ids(generate(made))
    first.seconds = 30.0
    killer = threading.Thread(target=lambda: (wait_until(lambda: first.in_flight > 0), first.kill()))
    killer.start()
    assert token_ids(generate(made)) == expected
    killer.join()


def test_a_slow_servers_groups_go_to_the_other(two_servers):
    first, _ = two_servers
    expected = token_ids(generate(make_engine(two_servers)))
    first.seconds = 30.0
    made = make_engine(two_servers, timeout=0.3)
    assert token_ids(generate(made)) == expected
    assert any("did not answer" in said for said in made.warnings)


def test_a_server_that_comes_back_is_waited_for(server):
    made = make_engine([server])
    expected = token_ids(generate(made))
    server.kill()
    starter = threading.Thread(target=lambda: (wait_until(lambda: bool(made.warnings)), server.start()))
    starter.start()
    assert token_ids(generate(made)) == expected
    starter.join()
    assert made.engine.take_counts()["rollout/seconds_waited"] > 0


def test_servers_that_stay_away_end_the_run_by_name(two_servers):
    made = make_engine(two_servers, timeout=0.1)
    for server in two_servers:
        server.kill()
    with pytest.raises(RolloutError, match="No vLLM server answers any more") as ended:
        generate(made)
    assert all(server.url in str(ended.value) for server in two_servers)
    assert "resume_from_checkpoint" in str(ended.value)


def test_after_the_last_retry_the_run_ends_with_the_servers_words(server):
    server.message = "CUDA out of memory"
    server.failures.extend([500] * 100)
    with pytest.raises(RolloutError, match=r"3 times in vain.*CUDA out of memory") as ended:
        generate(make_engine([server], retries=2), prompts=PROMPTS[:1])
    assert server.url in str(ended.value)
    assert len(server.bodies) == 3


def test_a_refusal_ends_the_run_at_once(server):
    server.failures.append(400)
    server.message = "n is too large"
    with pytest.raises(RolloutError, match="n is too large"):
        generate(make_engine([server]), prompts=PROMPTS[:1])
    assert len(server.bodies) == 1


def test_another_prompt_on_the_server_ends_the_run(server):
    made = make_engine([server])
    server.image_tokens = 5
    generate(made, prompts=PROMPTS[:1])
    with pytest.raises(RolloutError, match="image 1 has 4 tokens here and 5"):
        generate(made)


def test_ctrl_c_ends_the_rollout_while_the_servers_write(server):
    server.seconds = 30.0
    made = make_engine([server], timeout=60.0)
    thread = threading.Thread(target=lambda: (wait_until(lambda: server.in_flight == 16), _thread.interrupt_main()))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        generate(made)
    thread.join()
    server.seconds = 0.0
    assert len(generate(made)) == 4


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["weights", "adapter"])
def test_a_version_is_sent_once_and_asked_for(server, mode):
    made = make_engine([server], mode=mode)
    for version in (3, 3, 4):
        with made.engine.policy(None, MAIN_PROCESS, version) as model:
            assert model is None
            generate(made)
        asked = {body.get("model") for body in server.bodies[-4:]}
        assert asked == ({f"policy-{version}"} if mode == "adapter" else {None})
        assert server.version == ("default" if mode == "adapter" else f"policy-{version}")
    sending = "/v1/load_lora_adapter" if mode == "adapter" else "/update_weight_version"
    assert server.asked.count(sending) == 2
    assert not made.sync.replays


@pytest.mark.parametrize("mode", ["weights", "adapter"])
def test_completions_of_a_server_that_was_restarted_are_not_used(server, mode):
    made = make_engine([server], mode=mode)
    with made.engine.policy(None, MAIN_PROCESS, 3):
        expected = token_ids(generate(made))
        server.kill()
        server.start()  # with the weights it began with
        assert token_ids(generate(made)) == expected
    # Once for all the requests that came back stale at the same time.
    assert made.sync.replays == made.clients
    counts = made.engine.take_counts()
    assert counts["rollout/stale"] >= 1
    assert server.adapters == {"policy-3"} if mode == "adapter" else server.version == "policy-3"


def test_a_server_that_never_takes_the_weights_ends_the_run(server):
    made = make_engine([server], retries=1)
    with made.engine.policy(None, MAIN_PROCESS, 3):
        server.change = lambda answer: [
            choice.update(weight_versions=[{"version": "2", "start": 0, "end": 1}]) for choice in answer["choices"]
        ]
        with pytest.raises(RolloutError, match="version 2 instead of policy-3"):
            generate(made)


def test_another_process_waits_until_the_main_one_has_sent_the_weights(server):
    made = make_engine([server])
    other = SimpleNamespace(is_main_process=False, num_processes=1, wait_for_everyone=lambda: None)
    with made.engine.policy(None, other, 3):
        server.version = "2"
        sender = threading.Thread(
            target=lambda: (wait_until(lambda: len(server.bodies) > 12), setattr(server, "version", "policy-3"))
        )
        sender.start()
        assert len(generate(made)) == 4
        sender.join()
    assert not made.sync.replays and made.engine.take_counts()["rollout/stale"] > 3


def test_a_server_that_missed_the_weights_gets_them_before_it_writes(two_servers):
    made = make_engine(two_servers)
    made.sync.unreached = {made.clients[0]}
    with made.engine.policy(None, MAIN_PROCESS, 3):
        generate(made)
    assert made.sync.replays == [made.clients[0]]
    assert made.engine.take_counts()["rollout/stale"] == 0


def test_servers_wake_before_the_weights_come_and_sleep_afterwards(server):
    made = make_engine([server], sleeps=True)
    for version in (1, 1):
        with made.engine.policy(None, MAIN_PROCESS, version):
            generate(made)
    routes = [route for route in server.asked if route in ("/wake_up", "/update_weight_version", "/sleep")]
    assert routes == ["/update_weight_version", "/sleep", "/wake_up", "/sleep"]  # it is awake when it starts


def test_a_started_server_that_died_is_restarted_with_the_current_weights(server):
    made = with_process(server)
    with made.engine.policy(None, MAIN_PROCESS, 3):
        expected = token_ids(generate(made))
        server.seconds = 30.0

        def die():
            wait_until(lambda: server.in_flight == 16)
            server.kill()
            made.process.ended = 137

        killer = threading.Thread(target=die)
        killer.start()
        assert token_ids(generate(made)) == expected
        killer.join()
    assert made.process.restarts == 1 and server.version == "policy-3"
    counts = made.engine.take_counts()
    assert counts["rollout/server_restarts"] == 1 and counts["rollout/retries"] == 4 and counts["rollout/stale"] == 0
    assert any("exit code 137" in said and "vllm.log" in said for said in made.warnings)


def test_a_started_server_that_died_between_steps_is_restarted_before_the_weights_come(server):
    made = with_process(server)
    made.process.ended = 1
    server.kill()
    with made.engine.policy(None, MAIN_PROCESS, 3):
        assert server.version == "policy-3"
        assert len(generate(made)) == 4


def test_a_server_that_dies_again_while_it_gets_the_weights_is_started_again(server):
    made = with_process(server)
    with made.engine.policy(None, MAIN_PROCESS, 3):
        expected = token_ids(generate(made))

        def die_once():
            if made.process.restarts == 1:
                server.kill()
                made.process.ended = 137

        made.sync.before_send = die_once
        server.kill()
        made.process.ended = 137
        assert token_ids(generate(made)) == expected
    assert made.process.restarts == 2 and server.version == "policy-3"


class Stopped(BaseException):
    """As a signal ends a rollout."""


def test_a_signal_ends_the_waiting_for_a_server(server):
    made = make_engine([server], timeout=60.0)
    generate(made)
    server.kill()

    def progress(num_ended, num_tokens):
        if made.warnings:  # the server was found to be gone
            raise Stopped

    with pytest.raises(Stopped):
        generate(made, progress=progress)


def test_a_signal_ends_the_run_instead_of_a_restart(server):
    made = with_process(server)
    server.kill()
    made.process.ended = 143  # by the same scheduler

    def progress(num_ended, num_tokens):
        raise Stopped

    with pytest.raises(Stopped):
        generate(made, progress=progress)
    assert made.process.restarts == 0


def test_a_server_that_is_gone_when_it_is_to_sleep_or_wake_is_restarted(server):
    made = with_process(server, sleeps=True)
    with made.engine.policy(None, MAIN_PROCESS, 3):
        expected = token_ids(generate(made))
        server.kill()
    assert any("put to sleep" in said for said in made.warnings)
    made.process.ended = 137
    with made.engine.policy(None, MAIN_PROCESS, 3):
        assert token_ids(generate(made)) == expected
    server.refused = {"/wake_up": 500}
    with made.engine.policy(None, MAIN_PROCESS, 3):
        assert not made.engine.available()
        server.refused = {}
        assert token_ids(generate(made)) == expected
    assert made.process.restarts == 1


def test_a_started_server_that_hangs_is_restarted(server, monkeypatch):
    monkeypatch.setattr(engine, "HUNG_SECONDS", 0.0)
    made = with_process(server)
    expected = token_ids(generate(made))
    server.kill()  # the process is still there, but nothing answers
    assert token_ids(generate(made)) == expected
    assert made.process.restarts == 1


def test_close_stops_the_started_server_and_nothing_else(server):
    made = with_process(server)
    made.engine.close()
    assert made.process.stops == 1
    made = make_engine([server])
    with made.engine.policy(None, MAIN_PROCESS, 3):
        pass
    made.engine.close()
    assert server.client().health() and made.sync.closed == 1  # what it holds of this run is taken from it


def test_check_looks_at_every_server(two_servers):
    made = make_engine(two_servers)
    made.engine.check(PROMPTS, SAMPLING)
    two_servers[1].raw_log_probs = True
    with pytest.raises(RolloutError, match="--logprobs-mode processed_logprobs") as failed:
        made.engine.check(PROMPTS, SAMPLING)
    assert two_servers[1].url in str(failed.value)
    with pytest.raises(ArgumentError, match="temperature"):
        made.engine.check(PROMPTS, replace(SAMPLING, temperature=5.0))


def test_an_end_token_stops(server):
    groups = generate(make_engine([server]))
    endings = {c.ending: c for group in groups for c in group.completions}
    assert endings[Ending.STOPPED].token_ids[-1] in parts().ends
    assert not set(endings[Ending.TRUNCATED].token_ids) & set(parts().ends)


def test_check_says_what_to_do_about_a_server_that_is_not_there(server):
    made = make_engine([server])
    server.kill()
    with pytest.raises(RolloutError, match="correct grpo_vllm_url"):
        made.engine.check(PROMPTS, SAMPLING)


def test_close_ends_a_rollout_of_another_thread(server):
    made, errors = with_process(server, timeout=60.0), []
    server.seconds = 30.0

    def write():
        try:
            generate(made)
        except RolloutError as error:
            errors.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: server.in_flight == 16)
    made.process.ended = 0
    made.engine.close()
    writer.join(20)
    assert errors == ["The vLLM engine was closed while a rollout was written."]
    assert made.process.restarts == 0 and made.process.stops == 1
