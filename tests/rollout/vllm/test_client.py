import pickle
import threading

import pytest
from rollout.vllm.fake_server import GENERATE, KEY, fake_servers, wait_until

from lcot_plugin.errors import ArgumentError, RolloutError
from lcot_plugin.rollout.vllm.client import ServerGone, StaleWeights, VllmServer

BODY = {"token_ids": [5, 6], "sampling_params": {"n": 1, "max_tokens": 4, "temperature": 1.0}}


@pytest.fixture
def server():
    with fake_servers() as (server,):
        yield server


def test_completions_come_back_as_the_server_wrote_them(server):
    answer = server.client().generate(BODY)
    assert len(answer["choices"]) == 1
    assert server.bodies == [BODY]


def test_a_server_describes_itself(server):
    client = server.client()
    assert client.health()
    capabilities = client.capabilities()
    assert capabilities.offers(GENERATE) and not capabilities.offers("/nothing")
    assert "content_parts" in capabilities.generate_fields
    server.adapters.add("policy-3")
    assert [(model.name, model.max_model_len, model.parent) for model in client.models()] == [
        ("policy", 4096, None),
        ("policy-3", None, "policy"),
    ]
    assert client.server_info()["vllm_config"]


def test_a_server_that_does_not_describe_itself_may_offer_anything(server):
    server.routes.remove("/openapi.json")
    assert server.client().capabilities().offers("/nothing")


def test_weights_caches_and_sleep_go_to_their_routes(server):
    client = server.client()
    client.load_adapter("policy-1", "/folder")
    assert server.adapters == {"policy-1"}
    client.unload_adapter("policy-1")
    client.reload_weights("/folder")
    client.set_weight_version("7")
    assert client.weight_version() == "7"
    client.reset_caches()
    client.sleep()
    client.wake()
    assert server.asked == [
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/collective_rpc", "/update_weight_version"),
        *("/weight_info", "/reset_prefix_cache", "/reset_mm_cache", "/openapi.json", "/sleep", "/wake_up"),
    ]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_that_fails_may_be_asked_again(server, status):
    server.failures.append(status)
    with pytest.raises(ServerGone, match=f"HTTP {status}: no reason") as failed:
        server.client().generate(BODY)
    assert failed.value.answering


def test_a_server_that_is_not_there_is_gone(server):
    client = server.client()
    server.kill()
    assert not client.health()
    with pytest.raises(ServerGone, match="cannot be reached at /inference/v1/generate: ConnectionRefusedError") as gone:
        client.generate(BODY)
    assert not gone.value.answering


def test_a_slow_server_is_gone(server):
    server.seconds = 30.0
    with pytest.raises(ServerGone, match=r"did not answer /inference/v1/generate within 0\.2 s") as gone:
        server.client(timeout=0.2).generate(BODY)
    assert not gone.value.answering


def test_a_server_that_dies_meanwhile_is_gone(server):
    server.seconds = 30.0
    client, errors = server.client(), []

    def ask():
        try:
            client.generate(BODY)
        except ServerGone as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: server.in_flight == 1)
    server.kill()
    thread.join(20)
    assert len(errors) == 1


def test_a_refusal_is_passed_on(server):
    server.failures.append(400)
    server.message = "temperature must be in [0, 2]"
    with pytest.raises(RolloutError, match=r"HTTP 400\): temperature must be") as refused:
        server.client().generate(BODY)
    assert not isinstance(refused.value, ServerGone)


def test_a_wrong_key_says_where_to_put_the_right_one(server):
    for key in (None, "another"):
        client = VllmServer(server.url, key, 5.0)
        assert client.health()
        with pytest.raises(RolloutError, match="grpo_vllm_api_key_env"):
            client.models()


@pytest.mark.parametrize(
    ("route", "call", "advice"),
    [
        ("/v1/load_lora_adapter", lambda client: client.load_adapter("a", "b"), "--enable-lora"),
        ("/collective_rpc", lambda client: client.reload_weights("b"), "VLLM_SERVER_DEV_MODE=1"),
        ("/sleep", lambda client: client.sleep(), "--enable-sleep-mode"),
        (GENERATE, lambda client: client.generate(BODY), "--enable-scale-out"),
    ],
)
def test_a_route_that_is_missing_says_how_to_start_the_server(server, route, call, advice):
    server.routes.remove(route)
    with pytest.raises(RolloutError, match=advice):
        call(server.client())


def test_a_route_that_is_switched_off_names_the_flag(server):
    server.failures.append(403)
    server.message = "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
    with pytest.raises(RolloutError, match="does not take token ids: start it with --enable-scale-out"):
        server.client().generate(BODY)


def test_an_adapter_that_is_not_loaded_is_stale(server):
    with pytest.raises(StaleWeights, match="policy-9"):
        server.client().generate({**BODY, "model": "policy-9"})


def test_the_key_is_nowhere_to_be_seen(server):
    client = server.client()
    assert KEY not in repr(client) and client.url in repr(client)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(client)
    server.failures.append(400)
    server.message = f"the header Bearer {KEY} was sent"
    with pytest.raises(RolloutError) as refused:
        client.generate(BODY)
    assert KEY not in str(refused.value) and "(key)" in str(refused.value)


def test_a_key_that_cannot_be_one_is_refused():
    with pytest.raises(ArgumentError, match="line break") as refused:
        VllmServer("http://127.0.0.1:1", "half\nkey")
    assert "half" not in str(refused.value)
    with pytest.raises(ArgumentError, match="user or a password") as refused:
        VllmServer("http://me:hidden@127.0.0.1:1")
    assert "hidden" not in str(refused.value)


def test_abort_wakes_the_threads_that_wait_and_reopen_lets_them_ask_again(server):
    server.seconds = 30.0
    client, errors = server.client(timeout=60.0), []

    def ask():
        try:
            client.generate(BODY)
        except ServerGone as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.in_flight == 3)
    client.abort()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 3
    server.seconds = 0.0
    with pytest.raises(ServerGone, match="the rollout was stopped"):
        client.generate(BODY)
    client.reopen()
    assert client.generate(BODY)["choices"]


def test_what_is_no_vllm_server_says_so(server):
    server._models = lambda: [{"name": "x"}]
    with pytest.raises(RolloutError, match="is no vLLM server"):
        server.client().models()
