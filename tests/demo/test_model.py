"""The shipped base model: loads like a hub model, reads the picture, answers in the right form, cannot do the task."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from lcot_plugin.demo.data import DEVELOPMENT_SEED, build_sets
from lcot_plugin.demo.model import MODEL_DIR, write_config, write_processor, write_weights
from lcot_plugin.demo.task import QUESTION, READING_QUESTION, Problem


@pytest.fixture(scope="module")
def processor():
    processor = AutoProcessor.from_pretrained(MODEL_DIR)
    processor.tokenizer.padding_side = "left"
    return processor


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(MODEL_DIR).eval()


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return build_sets()["test"][:150]


def encode(processor, problems: list[Problem], question: str):
    turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}] for _ in problems]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    images = [[problem.image.convert("RGB")] for problem in problems]
    return processor(text=text, images=images, return_tensors="pt", padding=True)


@torch.no_grad()
def answers(model, processor, problems: list[Problem], question: str) -> list[str]:
    inputs = encode(processor, problems, question)
    generated = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_is_a_small_qwen2_5_vl(model) -> None:
    config = AutoConfig.from_pretrained(MODEL_DIR)
    assert config.model_type == "qwen2_5_vl"
    assert config.text_config.hidden_size // config.text_config.num_attention_heads >= 32
    assert sum(parameter.numel() for parameter in model.parameters()) < 5e6
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) < 10e6
    assert model.dtype == torch.float32


def test_every_digit_and_sign_is_one_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    ids = tokenizer("7+3=0\n0-5=5")["input_ids"]
    assert [tokenizer.decode([i]) for i in ids] == list("7+3=0\n0-5=5")
    assert len(tokenizer("<think></think>")["input_ids"]) == 2


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    text = "Naïve Straße, 你好 🙂\tx = 3²;\n\n  end"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_pictures_are_not_resized(processor, problems: list[Problem]) -> None:
    grids = encode(processor, problems, QUESTION)["image_grid_thw"].tolist()
    assert grids == [[1, 2, 2 * (len(problem.operations) + 1)] for problem in problems]


def test_it_reads_the_picture(model, processor, problems: list[Problem]) -> None:
    read = answers(model, processor, problems, READING_QUESTION)
    right = sum(text == problem.expression for text, problem in zip(read, problems, strict=True))
    assert right >= 0.9 * len(problems)


def test_it_answers_in_the_right_form_at_chance(model, processor, problems: list[Problem]) -> None:
    given = answers(model, processor, problems, QUESTION)
    assert all(text in {f"\\boxed{{{digit}}}" for digit in range(10)} for text in given)
    right = sum(text == problem.short_response for text, problem in zip(given, problems, strict=True))
    assert right <= 0.2 * len(problems)


def test_shipped_files_are_the_ones_the_code_writes(tmp_path: Path) -> None:
    write_processor(tmp_path)
    write_config(tmp_path)
    for path in tmp_path.glob("*.json"):
        assert json.loads(path.read_text()) == json.loads((MODEL_DIR / path.name).read_text()), path.name
    assert (tmp_path / "chat_template.jinja").read_text() == (MODEL_DIR / "chat_template.jinja").read_text()


def test_written_weights_load_again(tmp_path: Path, model) -> None:
    write_processor(tmp_path)
    write_config(tmp_path)
    write_weights(model, tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_logits_are_the_same_on_every_supported_transformers(model, processor) -> None:
    """The numbers were written down once, with transformers 5.5.4; 4.57.6 must give them too."""
    problem = build_sets({"test": 1}, DEVELOPMENT_SEED)["test"]
    with torch.no_grad():
        logits = model(**encode(processor, problem, QUESTION)).logits[0, -1]
    digits = [processor.tokenizer.convert_tokens_to_ids(token) for token in ("\\boxed", "<think>", "0", "9")]
    torch.testing.assert_close(
        logits[digits], torch.tensor([12.163598, 1.027771, -0.16321, -1.490497]), rtol=0, atol=1e-5
    )
