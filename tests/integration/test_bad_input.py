"""What a user gets wrong, and that the error names the file, the record and what to write, before any training."""

from __future__ import annotations

import gc
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from twins import TWIN_TEMPLATES, write_problems

from lcot_plugin.errors import ArgumentError, DataError, RewardError


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """A folder with four good records, to be spoilt."""
    write_problems(tmp_path, 4)
    return tmp_path


@pytest.fixture
def recipe(problems: Path, twin: Any) -> dict[str, Any]:
    return {
        "model_name_or_path": str(twin("qwen2_5_vl")),
        "template": TWIN_TEMPLATES["qwen2_5_vl"],
        "stage": "grpo",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "problems",
        "dataset_dir": str(problems),
        "media_dir": str(problems),
        "cutoff_len": 512,
        "bad_record_policy": "error",
        "output_dir": str(problems / "out"),
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "use_cpu": True,
    }


def run(recipe: dict[str, Any]) -> None:
    """What `llamafactory-cli train` runs, in this process."""
    from llamafactory.train.tuner import run_exp

    run_exp(recipe)


def spoil(folder: Path, record: int, **fields: Any) -> None:
    path = folder / "problems.json"
    records = json.loads(path.read_text())
    records[record] |= fields
    path.write_text(json.dumps(records))


def expect(error: type[Exception], recipe: dict[str, Any], *parts: str) -> None:
    with pytest.raises(error) as caught:
        run(recipe)
    for part in parts:
        assert part in str(caught.value)
    assert not Path(recipe["output_dir"], "trainer_log.jsonl").exists(), "training must not have begun"


@pytest.fixture
def datasets_leaves_files_open() -> Iterator[None]:
    """Closes the file that `datasets` leaves open when it fails, which would be a warning in some later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_missing_image(recipe: dict[str, Any], problems: Path) -> None:
    spoil(problems, 2, images=["gone.png"])
    expect(DataError, recipe, "problems (problems.json), record 2", "gone.png", "does not exist", "media_dir")


def test_broken_image(recipe: dict[str, Any], problems: Path) -> None:
    (problems / "broken.png").write_bytes(b"\x89PNG not really")
    spoil(problems, 1, images=["broken.png"])
    expect(DataError, recipe, "problems (problems.json), record 1", "broken.png")


def test_huge_image(recipe: dict[str, Any], problems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses pictures of twice its limit, with an error that is neither a ValueError nor an OSError."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    expect(DataError, recipe, "problems (problems.json), record 0", "image too large", "3136 pixels", "Scale it down")


def test_image_of_a_wrong_type(recipe: dict[str, Any], problems: Path) -> None:
    for record in range(4):
        spoil(problems, record, images=[7])
    expect(DataError, recipe, "problems (problems.json), record 0", "an image is of type int")


def test_wrong_number_of_image_tags(recipe: dict[str, Any], problems: Path) -> None:
    spoil(problems, 3, problem="<image><image>How many?")
    expect(DataError, recipe, "record 3", "2 <image> in the text for 1 images", "write one <image> per image")


def test_no_gold_answer(recipe: dict[str, Any], problems: Path) -> None:
    spoil(problems, 0, answer="  ")
    expect(DataError, recipe, "problems (problems.json), record 0", "no gold answer", '"gold": "answer"')


def test_every_bad_record_is_named(recipe: dict[str, Any], problems: Path) -> None:
    spoil(problems, 0, images=["gone.png"])
    spoil(problems, 3, answer=None)
    expect(DataError, recipe, "2 of 4 records cannot be used", "record 0", "record 3")


def test_gold_column_that_is_not_there(recipe: dict[str, Any], problems: Path) -> None:
    info = json.loads((problems / "dataset_info.json").read_text())
    info["problems"]["columns"]["gold"] = "solution"
    (problems / "dataset_info.json").write_text(json.dumps(info))
    expect(DataError, recipe, "no column 'solution'", "answer")


@pytest.mark.parametrize("content", ["", "[]", "\n[ ]\n"])
def test_empty_data_set(recipe: dict[str, Any], problems: Path, content: str) -> None:
    (problems / "problems.json").write_text(content.replace("[ ]", "[]"))
    expect(DataError, recipe, "problems (problems.json) is empty")


def test_every_prompt_over_cutoff(recipe: dict[str, Any]) -> None:
    parts = ("4 of 4 records cannot be used", "record 0: longer than cutoff_len", "cutoff_len is 4", "Raise cutoff_len")
    expect(DataError, {**recipe, "cutoff_len": 4}, *parts)


def test_unknown_reward(recipe: dict[str, Any]) -> None:
    expect(RewardError, {**recipe, "grpo_reward_funcs": "acuracy"}, "acuracy", "accuracy")


def test_reward_file_that_is_not_there(recipe: dict[str, Any]) -> None:
    expect(RewardError, {**recipe, "grpo_reward_funcs": "no/such/file.py:reward"}, "no/such/file.py")


def test_group_of_one(recipe: dict[str, Any]) -> None:
    expect(ArgumentError, {**recipe, "grpo_num_generations": 1}, "grpo_num_generations: 1", "write 2 or more")


def test_batch_not_divisible(recipe: dict[str, Any]) -> None:
    expect(
        ArgumentError,
        {**recipe, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
        "not a multiple of grpo_num_generations (8)",
        "gradient_accumulation_steps: 8",
    )


def test_greedy_training(recipe: dict[str, Any]) -> None:
    expect(ArgumentError, {**recipe, "temperature": 0.0}, "temperature: 1.0")


def test_unknown_key_is_still_rejected(recipe: dict[str, Any]) -> None:
    expect(ValueError, {**recipe, "grpo_num_generation": 8}, "grpo_num_generation")


def test_model_without_a_chat_template(recipe: dict[str, Any]) -> None:
    expect(ArgumentError, {**recipe, "template": "empty"}, "no chat template", "template: qwen2_vl")


def test_template_without_images(recipe: dict[str, Any]) -> None:
    expect(DataError, {**recipe, "template": "qwen"}, "record 0", "does not support image input")


def test_sft_errors_name_the_record_too(recipe: dict[str, Any], problems: Path) -> None:
    spoil(problems, 2, problem="<image><image>What is this one?")
    expect(DataError, {**recipe, "stage": "sft"}, "record 2", "What is this one?", "2 <image> in the text for 1 images")


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_one_bad_record_does_not_stop_a_run(recipe: dict[str, Any], problems: Path, stage: str) -> None:
    """Unless the user asks for it; what was left out is in the log and in data_report.json."""
    spoil(problems, 1, problem="<image>" + "How many circles are there? " * 40)
    spoil(problems, 2, images=["gone.png"])
    said = listen("llamafactory.lcot_plugin.integration.settling")
    changes = {"cutoff_len": 200, "bad_record_policy": "drop", "stage": stage}
    dataset = tokenise({**recipe, **changes})[0]["train_dataset"]
    assert len(dataset) == 2
    assert "longer than cutoff_len: dropped" in said[0] and "missing image: dropped" in said[0]
    report = json.loads((problems / "out" / "data_report.json").read_text())["problems"]
    assert (report["records"], report["kept"]) == (4, 2)
    found = {finding["fault"]: finding["examples"][0] for finding in report["findings"]}
    assert found["longer than cutoff_len"]["record"] == 1
    assert "gone.png does not exist" in found["missing image"]["detail"]


def test_an_overlong_record_stops_the_run_where_the_user_says_so(recipe: dict[str, Any], problems: Path) -> None:
    spoil(problems, 1, problem="<image>" + "How many circles are there? " * 40)
    changes = {"cutoff_len": 200, "bad_record_policy": "drop", "overlong_policy": "error"}
    expect(DataError, {**recipe, **changes}, "1 of 4 records cannot be used", "record 1", "cutoff_len is 200")


@pytest.mark.parametrize("key", ["bad_record_policy", "overlong_policy", "malformed_trace_policy", "cot_format"])
def test_a_policy_that_does_not_exist(recipe: dict[str, Any], key: str) -> None:
    expect(ArgumentError, {**recipe, key: "ignore"}, key, "'ignore' must be one of")


def listen(logger: str) -> list[str]:
    """What a logger says from now on."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(logger).addHandler(handler)
    return said


def test_command_line_arguments_mean_the_same_as_yaml() -> None:
    from lcot_plugin.integration.stage import is_grpo, with_sampling_defaults

    assert is_grpo({"stage": "grpo"}) and is_grpo(["--stage", "grpo"]) and is_grpo(["--stage=grpo", "--top_p", "1"])
    assert not is_grpo({"stage": "sft"}) and not is_grpo(["--stage", "sft"]) and not is_grpo([])
    assert with_sampling_defaults({"top_p": 0.9}) == {"temperature": 1.0, "top_p": 0.9, "top_k": 0}
    assert with_sampling_defaults(["--top_p=0.9"]) == ["--top_p=0.9", "--temperature", "1.0", "--top_k", "0"]
    dashed = ["--top-p", "0.9", "--temperature=0.5", "--top-k=3"]
    assert with_sampling_defaults(dashed) == dashed


def test_nothing_to_do(recipe: dict[str, Any]) -> None:
    expect(ArgumentError, {**recipe, "do_train": False}, "do_train: true")


def test_settings_that_grpo_cannot_honour(recipe: dict[str, Any]) -> None:
    expect(
        ArgumentError,
        {**recipe, "use_dft_loss": True, "neftune_noise_alpha": 5, "accelerator_config": {"dispatch_batches": True}},
        "use_dft_loss: ",
        "neftune_noise_alpha: ",
        "accelerator_config: dispatch_batches: ",
    )


@pytest.mark.usefixtures("datasets_leaves_files_open")
@pytest.mark.parametrize("stage", ["grpo", "sft"])
def test_images_that_begin_late_in_a_file(recipe: dict[str, Any], problems: Path, stage: str) -> None:
    """`datasets` decides on a column's type from the first 1000 records."""
    records = json.loads((problems / "problems.json").read_text())
    text = {"problem": "1 + 1?", "images": [], "answer": "2", "response": "2"}
    (problems / "problems.json").write_text(json.dumps([text] * 1001 + records))
    parts = ("problems (problems.json) cannot be read", "to null", "shuffle the file")
    expect(DataError, {**recipe, "stage": stage}, *parts)


@pytest.mark.usefixtures("datasets_leaves_files_open")
def test_a_file_that_is_not_json(recipe: dict[str, Any], problems: Path) -> None:
    (problems / "problems.json").write_text('[{"problem": "1 + 1?", "answer": ')
    expect(DataError, recipe, "problems (problems.json) cannot be read")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_prompt_column_that_is_not_there(recipe: dict[str, Any], problems: Path, workers: int) -> None:
    info = json.loads((problems / "dataset_info.json").read_text())
    info["problems"]["columns"]["prompt"] = "question"
    (problems / "dataset_info.json").write_text(json.dumps(info))
    expect(
        DataError,
        {**recipe, "preprocessing_num_workers": workers},
        "problems (problems.json) cannot be read (KeyError: 'question')",
        "dataset_info.json",
    )


def test_data_tokenised_for_another_stage(recipe: dict[str, Any], problems: Path) -> None:
    module, arguments = tokenise({**recipe, "stage": "sft", "tokenized_path": str(problems / "tokenised")})
    assert "labels" in module["train_dataset"].column_names
    expect(
        DataError,
        {**recipe, "tokenized_path": arguments.tokenized_path},
        "tokenised was tokenised for another stage",
        "gold",
        "Write another `tokenized_path`",
    )


def test_prompts_are_no_data_for_sft(recipe: dict[str, Any], problems: Path) -> None:
    changes = {"tokenized_path": str(problems / "tokenised")}
    tokenise({**recipe, **changes})
    expect(DataError, {**recipe, **changes, "stage": "sft"}, "tokenised for another stage", "labels")


def test_data_tokenised_for_this_stage(recipe: dict[str, Any], problems: Path) -> None:
    recipe["tokenized_path"] = str(problems / "tokenised")
    written, _ = tokenise(recipe)
    read, _ = tokenise(recipe)
    assert read["train_dataset"]["gold"][:] == written["train_dataset"]["gold"][:]


def tokenise(recipe: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What LLaMA-Factory loads for the recipe, and its data arguments."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    stage = finetuning_args.stage
    return get_dataset(template, model_args, data_args, training_args, stage=stage, **module), data_args


@pytest.mark.parametrize(
    ("written", "metric"),
    [
        ({"metric": "loss", "greater": False}, ("accuracy", True)),
        ({"metric": None, "greater": None}, (None, None)),
        ({"metric": None, "greater": None, "early": 2}, ("accuracy", True)),
        ({"metric": None, "greater": None, "save": "best"}, ("accuracy", True)),
        ({"metric": "truncated", "greater": False, "early": 2}, ("truncated", False)),
    ],
)
def test_the_best_checkpoint_is_judged_by_accuracy_unless_the_user_names_a_metric(
    written: dict[str, Any], metric: tuple[str | None, bool | None]
) -> None:
    from lcot_plugin.integration.stage import judge_checkpoints_by_accuracy

    training = SimpleNamespace(
        metric_for_best_model=written["metric"],
        greater_is_better=written["greater"],
        save_strategy=written.get("save", "steps"),
    )
    judge_checkpoints_by_accuracy(training, SimpleNamespace(early_stopping_steps=written.get("early")))
    assert (training.metric_for_best_model, training.greater_is_better) == metric
