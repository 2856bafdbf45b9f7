import pytest
from rollout.vllm.fake_server import GENERATE, fake_servers, prompt, request_format

from lcot_plugin.errors import RolloutError
from lcot_plugin.rollout.vllm.agreement import check_agreement, server_facts
from lcot_plugin.types import SamplingParams

SAMPLING = SamplingParams(num_generations=4, max_new_tokens=20)
PROMPTS = [prompt(), prompt("which one", num_images=1), prompt("which", num_images=2)]


@pytest.fixture
def server():
    with fake_servers() as (server,):
        yield server


def check(server, prompts=PROMPTS, requests=None):
    client = server.client()
    check_agreement(client, server_facts(client), requests or request_format(), prompts, SAMPLING)


def test_a_server_of_this_model_agrees(server):
    check(server)
    # Every prompt was sent, not only the first.
    sent = [len(body.get("content_parts", ())) for body in server.bodies]
    assert sent[-3:] == [0, 1, 2]


def test_facts_are_read_from_the_server(server):
    server.max_num_seqs = 7
    facts = server_facts(server.client())
    assert facts.max_model_len == 4096
    assert facts.max_num_seqs == 7 and facts.takes_images
    for route in ("/server_info", "/update_weight_version"):
        server.routes.remove(route)
    server.fields.remove("content_parts")
    facts = server_facts(server.client())
    assert facts.max_num_seqs is None and not facts.takes_images


def test_a_server_that_does_not_describe_itself_is_tried(server):
    server.routes.remove("/openapi.json")
    facts = server_facts(server.client())
    assert facts.takes_images
    check(server)


def test_a_server_without_the_route_for_tokens_is_too_old(server):
    server.routes.remove(GENERATE)
    with pytest.raises(RolloutError, match=r"--enable-scale-out.*too old"):
        check(server)


def test_a_server_that_takes_no_images_is_refused_only_where_there_are_some(server):
    server.fields.remove("content_parts")
    check(server, PROMPTS[:1])
    with pytest.raises(RolloutError, match="no content_parts"):
        check(server)


def test_a_context_that_is_too_short_names_the_flag(server):
    longest = max(len(one.record.input_ids) for one in PROMPTS) + SAMPLING.max_new_tokens
    server.max_model_len = longest
    check(server)
    server.max_model_len = longest - 1
    with pytest.raises(RolloutError, match=f"--max-model-len {longest} "):
        check(server)


def test_a_prompts_own_limit_counts_for_the_context(server):
    server.max_model_len = len(PROMPTS[0].record.input_ids) + 5
    check(server, [prompt(max_new_tokens=5)])


@pytest.mark.parametrize(("more", "said"), [(-5, r"has \d+ tokens"), (7, "has more tokens")])
def test_another_vocabulary_is_another_model(server, more, said):
    server.vocab_size += more
    with pytest.raises(RolloutError, match=f"serves another model: its vocabulary {said}"):
        check(server)


def test_raw_log_probabilities_name_the_flag(server):
    server.raw_log_probs = True
    with pytest.raises(RolloutError, match="--logprobs-mode processed_logprobs"):
        check(server)


def test_log_probabilities_that_are_missing_are_told(server):
    server.change = lambda answer: [choice.update(logprobs=None) for choice in answer["choices"]]
    with pytest.raises(RolloutError, match="gives no log-probabilities"):
        check(server)


def test_images_that_cost_another_number_of_tokens_are_told(server):
    server.image_tokens += 2
    check(server, PROMPTS[:1])
    with pytest.raises(RolloutError, match=r"image 1 has 4 tokens here and 6 on the server.*image_max_pixels"):
        check(server)
