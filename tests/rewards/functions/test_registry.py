from __future__ import annotations

from pathlib import Path

import pytest

from lcot_plugin.errors import RewardError
from lcot_plugin.rewards import Scorer, get_reward, register_reward, reward_names, unregister_reward
from lcot_plugin.rewards.functions.correctness import accuracy
from lcot_plugin.rewards.functions.registry import describe
from lcot_plugin.rewards.functions.specs import parse_spec
from lcot_plugin.types import Ending, Outcome, ScoringRequest, Verdict


def constant(completions: list[str], **kwargs) -> list[float]:
    return [1.0] * len(completions)


def test_register_and_unregister() -> None:
    register_reward("constant", constant)
    try:
        assert get_reward("constant") == ("constant", constant)
        with pytest.raises(RewardError, match="there is a reward 'constant' already"):
            register_reward("constant", constant)
    finally:
        unregister_reward("constant")
    with pytest.raises(RewardError, match="unknown reward 'constant'"):
        unregister_reward("constant")


def test_names_that_cannot_be_registered() -> None:
    with pytest.raises(RewardError, match="colon"):
        register_reward("a.py:b", constant)
    for name in ("a(b)", "a@b", "a,b", "a b", ""):
        with pytest.raises(RewardError, match="cannot name a reward"):
            register_reward(name, constant)
    with pytest.raises(RewardError, match="must be a function"):
        register_reward("number", 5)  # type: ignore[arg-type]


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(RewardError, match="did you mean 'accuracy'") as raised:
        get_reward("acuracy")
    assert all(name in str(raised.value) for name in reward_names())


def test_a_function_of_a_file_is_loaded_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def one(completions, **kwargs):\n    return [1.0] * len(completions)\nVALUE = 3\n")
    name, function = get_reward(f"{file}:one")
    assert name == "one"
    assert function(completions=["a", "b"]) == [1.0, 1.0]
    assert get_reward(f"{file}:one")[1] is function
    with pytest.raises(RewardError, match="no function 'two'; it defines one"):
        get_reward(f"{file}:two")
    with pytest.raises(RewardError, match="is int, not a function"):
        get_reward(f"{file}:VALUE")
    with pytest.raises(RewardError, match="does not exist"):
        get_reward(f"{tmp_path / 'absent.py'}:one")


def test_a_file_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import a_module_that_is_nowhere\n")
    with pytest.raises(RewardError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        get_reward(f"{tmp_path / 'broken.py'}:f")


def test_accuracy_abstains_on_a_bad_gold_answer() -> None:
    rewards = accuracy([*(Verdict(outcome) for outcome in Outcome), None])
    assert dict(zip([*Outcome, None], rewards, strict=True)) == {
        Outcome.MATCHED: 1.0,
        Outcome.MISMATCHED: 0.0,
        Outcome.UNPARSABLE: 0.0,
        Outcome.TIMED_OUT: 0.0,
        Outcome.GOLD_UNPARSABLE: None,
        None: None,
    }


@pytest.mark.parametrize(
    ("text", "base", "parameters", "kinds"),
    [
        ("accuracy", "accuracy", {}, ()),
        (" iou@boxes ", "iou", {}, ("boxes",)),
        ("f(a=-1, b='x, (y)', c=(1, None), d=True)@number | time", "f",
         {"a": -1, "b": "x, (y)", "c": (1, None), "d": True}, ("number", "time")),
        ("f()", "f", {}, ()),
        ("mine/a.py:f(a=1)", "mine/a.py:f", {"a": 1}, ()),
        ("/a b (1)/c@d.py:f(a=1)@text", "/a b (1)/c@d.py:f", {"a": 1}, ("text",)),
        ("judge(prompt='x.py:y(z)')", "judge", {"prompt": "x.py:y(z)"}, ()),
        ("trl:pack.age:f@set", "trl:pack.age:f", {}, ("set",)),
    ],
)  # fmt: skip
def test_the_parts_of_a_spec(text: str, base: str, parameters: dict, kinds: tuple) -> None:
    spec = parse_spec(text)
    assert (spec.base, spec.parameters, spec.kinds) == (base, parameters, kinds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the reward ''"),
        ("two words", "cannot read"),
        ("f(a=1", "cannot read"),
        ("f(1)", "write parameters as name=value"),
        ("f(**{'a': 1})", "write parameters as name=value"),
        ("f(a=1) + g(b=2)", "write parameters as name=value"),
        ("f(a=)", "write parameters as name=value"),
        ("f(a=1, a=2)", "gives a twice"),
        ("f(a=number)", "a=number is no value; .* a text in quotes .a='number'."),
        ("f(a=__import__('os').getcwd())", "is no value"),
        ("f(a=2**9)", "is no value"),
        ("f(a=[x for x in (1, 2)])", "is no value"),
    ],
)
def test_specs_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        parse_spec(text)


def test_parameters_are_bound_and_checked() -> None:
    name, function = get_reward("repetition(ngram_size=1, max_penalty=-2)")
    assert name == "repetition"
    assert function(completions=["a a"]) == [-1.0]
    for spec, message in [
        ("repetition(ngram=1)", r"no parameter 'ngram'; it has ngram_size: int = 3, max_penalty: float = -1.0"),
        ("repetition(ngram_size=1.5)", r"ngram_size: int = 3 cannot be 1.5"),
        ("repetition(ngram_size=True)", r"cannot be True"),
        ("repetition(ngram_size=0)", r"ngram_size=0 must be at least 1"),
        ("accuracy(verdicts=())", r"no parameter 'verdicts'; it has none"),
        ("soft_overlong", r"needs max_length, which no record provides: write soft_overlong\(max_length=...\)"),
        ("soft_overlong(max_length=10, cache=11)", r"cache=11 must lie between"),
    ]:
        with pytest.raises(RewardError, match=message):
            get_reward(spec)


def test_defaults_fill_what_a_reward_requires() -> None:
    defaults = {"max_length": 10, "ngram_size": 1}
    assert get_reward("soft_overlong(cache=2)", defaults)[1](completion_ids=[[1] * 9]) == [-0.5]
    assert get_reward("soft_overlong(max_length=20)", defaults)[1](completion_ids=[[1] * 18]) == [-0.5]
    assert get_reward("repetition", defaults)[1](completions=["a a"]) == [0.0]


def test_a_function_of_an_importable_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack_of_rewards").mkdir()
    (tmp_path / "pack_of_rewards" / "__init__.py").write_text("")
    (tmp_path / "pack_of_rewards" / "mine.py").write_text(
        "def two(completions):\n    return [2.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name, function = get_reward("pack_of_rewards.mine:two")
    assert (name, function(completions=["a"])) == ("two", [2.0])
    with pytest.raises(RewardError, match=r"module pack_of_rewards\.mine has no function 'three'; it defines two"):
        get_reward("pack_of_rewards.mine:three")
    with pytest.raises(RewardError, match=r"module pack_of_rewards\.yours cannot be imported: ModuleNotFoundError"):
        get_reward("pack_of_rewards.yours:two")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with two entry points, one of which cannot be imported."""
    (tmp_path / "distributed_rewards.py").write_text(
        "def tidy(completion, *, least: int = 2):\n    'Is tidy.'\n    return 3.0\n"
    )
    metadata = tmp_path / "distributed_rewards-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: distributed-rewards\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[lcot_plugin.rewards]\ntidy = distributed_rewards:tidy\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_an_installed_entry_point(tmp_path: Path) -> None:
    name, function = get_reward("tidy(least=1)")
    assert (name, function(completion="a")) == ("tidy", 3.0)
    assert "tidy" in reward_names()
    (row,) = [row for row in describe() if row.name == "tidy"]
    assert (row.summary, row.parameters, row.origin) == ("Is tidy.", "least=2", "distributed-rewards")
    points = tmp_path / "distributed_rewards-1.0.dist-info" / "entry_points.txt"
    points.write_text("[lcot_plugin.rewards]\ntidy = distributed_rewards:untidy\n")
    with pytest.raises(RewardError, match="'tidy', installed as distributed_rewards:untidy, cannot be imported: Attr"):
        get_reward("tidy")


SHIPPED = [
    "accuracy", "anls", "boxed_position", "choice", "cosine_length", "format_think_answer", "format_think_boxed",
    "gaussian_number", "giou", "iou", "language_consistency", "length", "llm_judge", "repetition", "soft_overlong",
    "tag_count",
]  # fmt: skip


def test_every_shipped_reward_is_described() -> None:
    rows = {row.name: row for row in describe()}
    assert set(SHIPPED) <= set(rows)
    assert all(len(rows[name].summary) > 20 for name in SHIPPED)
    assert rows["cosine_length"].parameters.startswith("max_length, min_correct=0.5, max_correct=1.0")
    assert rows["llm_judge"].parameters.startswith("url, model, api_key_env='OPENAI_API_KEY'")
    assert rows["accuracy"].parameters == ""


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "llm_judge"])
def test_every_shipped_reward_judges_a_batch(name: str) -> None:
    requests = [
        ScoringRequest(r"<think>a</think> \boxed{5}", "5", "How many?", completion_ids=[1, 2]),
        ScoringRequest("", "[1, 2, 3, 4]", answer_type="boxes"),
        ScoringRequest("B", "", ending=Ending.TRUNCATED),
    ]
    with Scorer([name], max_new_tokens=4) as scorer:
        values = [score.rewards[name] for score in scorer.score(requests)]
    assert len(values) == 3
    assert all(value is None or -1.0 <= value <= 1.0 for value in values)
