import base64
import hashlib
import io
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rollout.vllm.fake_server import IMAGE_TOKENS, parts, prompt, request_format

from lcot_plugin.errors import ArgumentError, RolloutError
from lcot_plugin.rollout.vllm.client import ServerGone, StaleWeights
from lcot_plugin.rollout.vllm.requests import check_sampling, check_weights, image_part, request_seed
from lcot_plugin.types import Ending, SamplingParams

SAMPLING = SamplingParams(num_generations=4, max_new_tokens=20, temperature=0.7, top_p=0.9, top_k=40, min_p=0.05)
URL = "http://server"


def body(sampling=SAMPLING, sent=None, **settings):
    requests = request_format()
    values = {"num": 4, "limit": 20, "seed": 3, "adapter": None, **settings}
    return requests.body(sent or requests.prepare(prompt()), sampling, **values)


def answered(choices, sampling=SAMPLING, limit=20, **settings):
    requests = request_format(**settings)
    rule = requests.stop_rule(sampling)
    return requests.completions({"choices": choices}, num=len(choices), limit=limit, rule=rule, url=URL)


def choice(token_ids, reason="stop", index=0, stop_reason=None, logp=-0.5):
    content = [{"token_id": token_id, "logprob": logp} for token_id in token_ids]
    return {
        "index": index,
        "token_ids": token_ids,
        "finish_reason": reason,
        "stop_reason": stop_reason,
        "logprobs": {"content": content},
    }


def words(text):
    return parts().tokenizer.encode(text)


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_a_request_says_all_that_decides_a_draw():
    sent = body(replace(SAMPLING, repetition_penalty=1.2))
    parameters = sent["sampling_params"]
    assert {key: parameters[key] for key in ("n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")} == {
        "n": 4,
        "max_tokens": 20,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "seed": 3,
    }
    assert parameters["repetition_penalty"] == 1.2 and parameters["logprobs"] == 0
    # Its own end tokens and no others end a completion.
    assert parameters["ignore_eos"] is True and parameters["stop_token_ids"] == sorted(parts().ends)
    assert parameters["logit_bias"] == {str(token_id): -100.0 for token_id in parts().vlm.banned_token_ids}
    assert sent["token_ids"] == prompt().record.input_ids and sent["return_token_ids"] is True
    assert "content_parts" not in sent and "model" not in sent and "stop" not in parameters
    assert parameters["detokenize"] is False


def test_stop_strings_need_the_servers_text():
    parameters = body(replace(SAMPLING, stop_strings=("</answer>", "")))["sampling_params"]
    assert parameters["stop"] == ["</answer>"] and parameters["include_stop_str_in_output"] is True
    assert parameters["detokenize"] is True and parameters["skip_special_tokens"] is True


def test_an_adapter_is_asked_for_by_its_name():
    assert body(adapter="policy-3")["model"] == "policy-3"


def test_an_end_token_is_not_banned():
    requests = request_format()
    requests.vlm = parts().vlm
    both = [*parts().ends, parts().image]
    banned = type(requests)(parts().vlm, parts().tokenizer, both, requests.images, True).banned
    assert parts().image not in banned and banned


def test_images_go_collapsed_and_without_loss():
    pictured = prompt(num_images=2)
    sent = body(sent=request_format().prepare(pictured))
    assert sent["token_ids"].count(parts().image) == 2
    assert pictured.record.input_ids.count(parts().image) == 2 * IMAGE_TOKENS
    for part, picture in zip(sent["content_parts"], pictured.record.images, strict=True):
        header, _, data = part["url"].partition(",")
        content = base64.b64decode(data)
        assert header == "data:image/png;base64" and part["type"] == "image_url"
        assert Image.open(io.BytesIO(content)).tobytes() == picture.tobytes()
        assert part["uuid"] == hashlib.sha256(content).hexdigest()


def test_an_image_goes_as_the_rgb_that_training_sees():
    transparent = Image.new("RGBA", (3, 2), (10, 20, 30, 40))
    content = base64.b64decode(image_part(transparent)["url"].partition(",")[2])
    seen = Image.open(io.BytesIO(content))
    assert seen.mode == "RGB" and seen.tobytes() == transparent.convert("RGB").tobytes()


def test_an_image_is_decoded_and_encoded_once_however_many_requests_it_is_in():
    calls = []

    def images(record):
        calls.append(record)
        return record.images

    sent = request_format(images=images).prepare(prompt(num_images=2))
    assert not calls
    threads = [threading.Thread(target=sent.content_parts) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and sent.content_parts() is sent.content_parts()


@pytest.mark.parametrize("kind", ["videos", "audios"])
def test_other_media_are_refused(kind):
    with pytest.raises(ArgumentError, match=f"record 0 has {kind}.*grpo_rollout_engine: transformers"):
        request_format().prepare(prompt(**{kind: ["file"]}))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": 0.001}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_what_vllm_cannot_draw_is_refused(settings, key):
    with pytest.raises(ArgumentError, match=f"^{key}: "):
        check_sampling(replace(SAMPLING, **settings))
    check_sampling(replace(SAMPLING, temperature=0.0))
    check_sampling(SAMPLING)


@given(seed=st.integers(0, 2**32), slot=st.integers(0, 10**6), first=st.integers(0, 4096))
def test_seeds_fit_and_parts_of_a_group_continue_each_other(seed, slot, first):
    start = request_seed(seed, slot, 0)
    assert request_seed(seed, slot, first) == start + first
    assert start >= 0 and start + 10**6 < 2**63
    assert start != request_seed(seed, slot + 1, 0) and start != request_seed(seed + 1, slot, 0)


# --- what comes back --------------------------------------------------------------------------------------------------


def test_endings_and_texts_are_those_of_the_engine_in_process():
    end = parts().ends[0]
    text = words("the circle")
    stopped, truncated = answered([choice([*text, end], "stop", 0, end), choice(text, "length", 1)], limit=len(text))
    assert stopped.ending is Ending.TRUNCATED  # one token too many is cut off, as the limit says
    assert truncated.ending is Ending.TRUNCATED and truncated.text == "the circle"
    (stopped,) = answered([choice([*text, end], "stop", 0, end)])
    assert stopped.ending is Ending.STOPPED and stopped.text == "the circle"
    assert stopped.token_ids == [*text, end] and stopped.sampler_logps == [-0.5] * len(stopped.token_ids)
    assert stopped.policy_logps is None


def test_completions_come_in_the_order_of_their_index():
    text = words("one two three")
    found = answered([choice(text[i:], "length", i) for i in (2, 0, 1)])
    assert [completion.token_ids for completion in found] == [text[0:], text[1:], text[2:]]


def test_a_stop_string_ends_the_tokens_where_the_engine_in_process_would():
    sampling = replace(SAMPLING, stop_strings=("circle",))
    text = words("the circle is red")
    (completion,) = answered([choice(text, "stop", 0, "circle")], sampling)
    rule = request_format().stop_rule(sampling)
    length = next(n for n in range(1, len(text) + 1) if rule.ending(text[:n], 20))
    assert completion.token_ids == text[:length] and length < len(text)
    assert completion.ending is Ending.STOPPED and completion.text == "the circle"
    assert len(completion.sampler_logps) == length


def test_a_stop_string_that_only_the_server_saw_has_stopped():
    sampling = replace(SAMPLING, stop_strings=("circle",))
    (completion,) = answered([choice(words("the red"), "stop", 0, "circle")], sampling)
    assert completion.ending is Ending.STOPPED


def test_a_context_that_is_full_before_the_limit_truncates():
    (completion,) = answered([choice(words("the red"), "length")], limit=1000)
    assert completion.ending is Ending.TRUNCATED


def test_a_completion_that_was_broken_off_is_asked_for_again():
    with pytest.raises(ServerGone, match="broke a completion off") as gone:
        answered([choice([], "abort")])
    assert gone.value.answering


def test_an_ending_without_an_end_token_is_an_error():
    with pytest.raises(RolloutError, match="has no end token"):
        answered([choice(words("the red"), "stop", 0, 7)])


@pytest.mark.parametrize("logp", [None, float("-inf"), float("nan"), -9999.0])
def test_a_log_probability_that_is_none_names_its_token(logp):
    token = words("circle")[0]
    said = rf"{logp} as the log-probability of .* \({token}\), token 0 .* learning_rate"
    with pytest.raises(RolloutError, match=said):
        answered([choice([token], "length", logp=logp)])


def test_missing_log_probabilities_are_an_error():
    silent = choice(words("the red"), "length") | {"logprobs": None}
    with pytest.raises(RolloutError, match="gave 0 log-probabilities for 2 tokens"):
        answered([silent])


def test_a_placeholder_in_a_completion_is_an_error():
    with pytest.raises(RolloutError, match=r"wrote '<\|image_pad\|>'"):
        answered([choice([*words("the"), parts().image], "length")])


def test_fewer_completions_than_asked_for_are_an_error():
    requests = request_format()
    with pytest.raises(RolloutError, match="gave 1 completions where 2"):
        rule = requests.stop_rule(SAMPLING)
        requests.completions({"choices": [choice([5], "length")]}, num=2, limit=9, rule=rule, url=URL)


def test_another_prompt_is_an_error():
    requests, pictured = request_format(), prompt(num_images=1)
    ours = pictured.record.input_ids
    requests.check_prompt({"prompt_token_ids": ours}, pictured, URL)
    wrong = [*ours[:3], parts().image, *ours[3:]]
    with pytest.raises(RolloutError, match=r"problems, record 0\): image 1 has 4 tokens here and 5 on the server"):
        requests.check_prompt({"prompt_token_ids": wrong}, pictured, URL)
    with pytest.raises(RolloutError, match="install a newer vLLM"):
        requests.check_prompt({"prompt_token_ids": None}, pictured, URL)


def test_weights_of_another_version_are_stale():
    spans = [{"version": "4", "start": 0, "end": 3}, {"version": "5", "start": 3, "end": 9}]
    labelled = {"model": "policy", "choices": [{"weight_versions": spans[1:]}]}
    check_weights(labelled, adapter=None, label="5", url=URL)
    check_weights(labelled, adapter=None, label=None, url=URL)
    with pytest.raises(StaleWeights, match="version 4, 5 instead of 5"):
        check_weights({"choices": [{"weight_versions": spans}]}, adapter=None, label="5", url=URL)
    with pytest.raises(StaleWeights, match="unknown weights instead of 5"):
        check_weights({"choices": [{"weight_versions": None}]}, adapter=None, label="5", url=URL)
    check_weights({"model": "policy-5", "choices": []}, adapter="policy-5", label=None, url=URL)
    with pytest.raises(StaleWeights, match="'policy' instead of 'policy-5'"):
        check_weights({"model": "policy", "choices": []}, adapter="policy-5", label=None, url=URL)


def test_prompts_that_cannot_be_asked_for_are_named():
    requests = request_format()
    assert requests.sendable(prompt("why", num_images=1).record)
    with pytest.raises(ArgumentError, match="problems, record 0 has videos"):
        requests.sendable(prompt(videos=["a"]).record)
    record = prompt("apart", num_images=3).record
    image = parts().image
    first = record.input_ids.index(image)
    ids = [*record.input_ids[:first], image, *record.input_ids[-2:], *[image] * 8]  # three images in two places
    with pytest.raises(ArgumentError, match="problems, record 0: A prompt has 3 images in 2 places"):
        requests.sendable(replace(record, input_ids=ids))
