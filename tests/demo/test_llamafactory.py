"""LLaMA-Factory takes the shipped model and sets as they are, and its prompts are the ones pre-training used."""

import pytest
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer

from lcot_plugin.demo.data import build_sets
from lcot_plugin.demo.model import MODEL_DIR
from lcot_plugin.demo.task import QUESTION


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return get_train_args(
        {
            "model_name_or_path": str(MODEL_DIR),
            "template": "qwen2_vl",
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "dataset": "demo_sft_long",
            "dataset_dir": "dataset_info",
            "output_dir": str(tmp_path_factory.mktemp("output")),
            "report_to": "none",
        }
    )


def test_its_prompt_is_the_chat_template(arguments) -> None:
    model_args, data_args, *_ = arguments
    module = load_tokenizer(model_args)
    tokenizer, processor = module["tokenizer"], module["processor"]
    num_before = len(tokenizer)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    assert len(tokenizer) == num_before
    problem = build_sets({"test": 1})["test"][0]
    messages = [
        {"role": "user", "content": f"<image>{QUESTION}"},
        {"role": "assistant", "content": problem.long_response},
    ]
    image = problem.image.convert("RGB")
    messages = template.mm_plugin.process_messages(messages, [image], [], [], processor)
    prompt_ids, response_ids = template.encode_oneturn(tokenizer, messages)

    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    expected = processor(text=[text], images=[image])["input_ids"][0]
    assert list(prompt_ids) == list(expected)
    assert tokenizer.decode(response_ids) == f"{problem.long_response}<|im_end|>\n"


def test_it_loads_the_model(arguments) -> None:
    model_args, _, _, finetuning_args, _ = arguments
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    model = load_model(tokenizer, model_args, finetuning_args, is_trainable=True)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert 5e5 < trainable < 5e6
