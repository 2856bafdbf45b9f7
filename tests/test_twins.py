import math
import re

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from twins import TWIN_TEMPLATES, build_twin, write_problems

FAMILIES = sorted(TWIN_TEMPLATES)
# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
QUESTION = "How many circles are in the picture?"


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory):
    return write_problems(tmp_path_factory.mktemp("problems"), 5, num_text_only=1, num_two_images=1)


def question(processor, num_images: int = 1) -> str:
    parts = [{"type": "image"}] * num_images + [{"type": "text", "text": QUESTION}]
    return processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_as_a_hub_model_and_trains(family, twin, problems):
    directory = twin(family)
    config = AutoConfig.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    assert type(model).__name__ in config.architectures
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert tokenizer.decode(tokenizer(f"{QUESTION} \\boxed{{3}}", add_special_tokens=False)["input_ids"]) == (
        f"{QUESTION} \\boxed{{3}}"
    )

    images = [Image.open(problems / f"problems_{name}.png") for name in ("1_0", "1_1", "2_0")]
    batch = processor(
        text=[question(processor, 2), question(processor)],
        images=[images[:2], images[2:]],
        padding=True,
        return_tensors="pt",
    )
    model(**batch, labels=batch["input_ids"]).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in grads.values())
    for part in ("vis", "(language|text)_model", "lm_head"):
        found = [grad for name, grad in grads.items() if re.search(part, name)]
        assert any(grad.abs().max() > 1e-4 for grad in found), f"no gradient in {part}"

    generated = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > batch["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_predictions_are_peaked_and_depend_on_image_and_order(family, twin, problems):
    """Else tests of positions, masks and images could not fail."""
    processor = AutoProcessor.from_pretrained(twin(family))
    model = AutoModelForImageTextToText.from_pretrained(twin(family)).eval()

    def last_logps(text: str, image: str) -> torch.Tensor:
        batch = processor(text=[text], images=[[Image.open(problems / image)]], return_tensors="pt")
        return model(**batch).logits[0, -1].log_softmax(-1)

    logps = last_logps(question(processor), "problems_2_0.png")
    entropy = -(logps.exp() * logps).sum()
    assert entropy < math.log(len(logps)) - 1.0
    other_image = last_logps(question(processor), "problems_3_0.png")
    other_order = last_logps(question(processor).replace("many circles", "circles many"), "problems_2_0.png")
    for other in (other_image, other_order):
        assert (other - logps).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_llamafactory_loads_and_trains_it(family, twin, problems, tmp_path):
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer

    model_args, data_args, training_args, finetuning_args, _ = get_train_args(
        {
            "model_name_or_path": str(twin(family)),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "freeze_vision_tower": False,
            "dataset": "problems",
            "dataset_dir": str(problems),
            "template": TWIN_TEMPLATES[family],
            "cutoff_len": 1024,
            "output_dir": str(tmp_path),
            "overwrite_cache": True,
            "report_to": "none",
            "use_cpu": True,
        }
    )
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
    model = load_model(tokenizer_module["tokenizer"], model_args, finetuning_args, is_trainable=True)
    collator = SFTDataCollatorWith4DAttentionMask(template=template, model=model, **tokenizer_module)
    records = list(dataset["train_dataset"])
    assert len(records) == 5
    for chosen in (records[:1], records):  # text alone, then text, two images and one image together
        model.zero_grad()
        loss = model(**collator([dict(record) for record in chosen])).loss
        loss.backward()
        assert 0.5 < loss.item() < 50
        assert any(p.grad.abs().max() > 1e-4 for n, p in model.named_parameters() if "lm_head" in n)


def test_the_same_twin_every_time(twin, tmp_path):
    again = build_twin("qwen2_5_vl", tmp_path / "again")
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (again / file).read_bytes() == (twin("qwen2_5_vl") / file).read_bytes()


def test_building_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_twin("llava", tmp_path)
    torch.testing.assert_close(torch.rand(3), expected)
