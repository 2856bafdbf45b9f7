import pytest

from lcot_plugin.report.masking import MASK, is_secret, masked


@pytest.mark.parametrize(
    "name",
    [
        *("hub_token", "hf_hub_token", "swanlab_api_key", "swanlab_lark_secret", "swanlab_lark_webhook_url"),
        *("password", "WANDB_API_KEY", "OPENAI_API_KEY", "aws-secret-access-key", "token", "ApiKey", "credentials"),
    ],
)
def test_keys_that_hold_a_secret(name):
    assert is_secret(name)
    assert masked({name: "abc"}, {}) == {name: MASK}
    assert masked({"deeper": [{name: ["abc"]}]}, {}) == {"deeper": [{name: MASK}]}
    assert masked({name: None}, {}) == {name: None}, "that none is set is no secret"


@pytest.mark.parametrize(
    "name",
    [
        *("pack_max_tokens", "max_new_tokens", "grpo_micro_batch_tokens", "tokenized_path", "new_special_tokens"),
        *("grpo_vllm_api_key_env", "add_tokens", "grpo_log_token_log_probs", "tokenizer", "key", "monkey"),
    ],
)
def test_keys_that_do_not(name):
    assert not is_secret(name)
    assert masked({name: "abc"}, {}) == {name: "abc"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pw@host:8000/v1", "http://***@host:8000/v1"),
        ("postgres://me@db/x", "postgres://***@db/x"),
        ("https://host/v1?api_key=s3&b=2", "https://host/v1?api_key=***&b=2"),
        ("accuracy,judge(api_key=s3, model=x)", "accuracy,judge(api_key=***, model=x)"),
        ("judge(api_key='s3 s4', model=x)", "judge(api_key='***', model=x)"),
        ('{"api_key": "s3", "b": 1}', '{"api_key": "***", "b": 1}'),
        ("--api-key s3 --port 1", "--api-key *** --port 1"),
        ("--hf-token=s3", "--hf-token=***"),
        ("Authorization: Bearer s3", "Authorization: ***"),
        ("use hf_abcdefghijklmnopqrst now", "use *** now"),
        ("sk-proj-abcdefghijklmnopqrst", "***"),
        ("ghp_abcdefghijklmnopqrst", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def_g", "***"),
    ],
)
def test_secrets_within_a_text(text, expected):
    assert masked(text, {}) == expected
    assert masked([{"argument": text}], {}) == [{"argument": expected}]


@pytest.mark.parametrize(
    "text",
    [
        *("saves/token trial", "max_tokens=5", "a secret garden", "judge(key_env=OPENAI_API_KEY)", "--max-tokens 5"),
        *("http://127.0.0.1:8000", "rewards/judge.py:my_reward", "accuracy,soft_overlong(cache=512)", "a@b.org"),
    ],
)
def test_texts_without_a_secret_stay(text):
    assert masked(text, {}) == text


def test_what_the_environment_holds_as_a_secret_is_found_anywhere():
    environment = {"HF_TOKEN": "my-very-own", "OTHER_TOKEN": "my-very-own-and-longer", "HOME": "/home/someone"}
    told = masked({"path": "/x/my-very-own-and-longer/my-very-own", "home": "/home/someone"}, environment)
    assert told == {"path": "/x/***/***", "home": "/home/someone"}


def test_short_values_of_the_environment_do_not_spoil_other_texts():
    assert masked("a number 1234", {"APP_TOKEN": "1234", "EMPTY_TOKEN": ""}) == "a number 1234"


def test_other_values_stay_as_they_are():
    values = {"a": 1, "b": 2.5, "c": None, "d": True, "e": (1, "x")}
    assert masked(values, {}) == {"a": 1, "b": 2.5, "c": None, "d": True, "e": [1, "x"]}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://me:p@ss@host:80/x", "http://***@host:80/x"),
        ("http://a:80,http://me:p@b", "http://a:80,http://***@b"),
        ("judge(url=https://host/v1?key=AIzaSy0123&x=1)", "judge(url=https://host/v1?key=***&x=1)"),
        ("https://bucket/data.json?X-Amz-Signature=0123abc", "https://bucket/data.json?X-Amz-Signature=***"),
        ({"env_vars": {"OPENAI_KEY": "abc"}}, {"env_vars": {"OPENAI_KEY": "***"}}),
        ({"sort_key": "length", "key": "value"}, {"sort_key": "length", "key": "value"}),
    ],
)
def test_addresses_and_variables_have_more_forms(given, shown):
    assert masked(given, {}) == shown
