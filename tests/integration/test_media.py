"""An image that makes every parameter used, and changes nothing."""

import pytest
import torch
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer
from loaded_twins import FAMILIES, ONE_IMAGE, SHORT_TEXT, TEXT, load_twin, written
from twins import TWIN_TEMPLATES

from lcot_plugin.integration.media import PromptEncoder
from lcot_plugin.packing.families import trains_vision
from lcot_plugin.policy.head import token_log_probs
from lcot_plugin.types import Completion, Ending, TrainingSequence

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")


def white_image(loaded):
    module = load_tokenizer(ModelArguments(model_name_or_path=str(loaded.directory)))
    template = get_template_and_fix_tokenizer(
        module["tokenizer"], DataArguments(template=TWIN_TEMPLATES[loaded.family], cutoff_len=1024)
    )
    return PromptEncoder(template, module["processor"], loaded.vlm).white_image(module["tokenizer"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_with_a_white_image_uses_the_vision_tower_and_changes_nothing(family, twin):
    loaded = load_twin(twin(family))
    sequences = [written(loaded.prompts[i], [5, 17, 300]) for i in (TEXT, SHORT_TEXT)]
    nothing = TrainingSequence(white_image(loaded), Completion([], [], Ending.STOPPED, ""), -1, trained=False)
    with_image = written(loaded.prompts[ONE_IMAGE], [5])
    names = [name for name, _ in loaded.model.named_parameters()]

    def gradients(rows):
        model_inputs, targets = loaded.rows(rows, 1.0)
        log_probs, _ = token_log_probs(loaded.model, loaded.model, targets, model_inputs)
        found = torch.autograd.grad(log_probs.sum(), list(loaded.model.parameters()), allow_unused=True)
        return log_probs.detach(), dict(zip(names, found, strict=True))

    plain, expected = gradients(sequences)
    filled, found = gradients([*sequences, nothing])
    _, of_images = gradients([with_image])
    torch.testing.assert_close(filled, plain, atol=1e-5, rtol=0)
    unused = {name for name, gradient in expected.items() if gradient is None}
    needed = unused & {name for name, gradient in of_images.items() if gradient is not None}
    assert any("vis" in name for name in needed)
    assert all(found[name] is not None and not found[name].any() for name in needed)
    total = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    for name, gradient in expected.items():
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, atol=1e-5 * total, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_trains_vision(family, twin):
    model = load_twin(twin(family)).fresh_model()
    assert trains_vision(model)
    model.requires_grad_(False)
    assert not trains_vision(model)
    model.get_output_embeddings().requires_grad_(True)
    assert not trains_vision(model)
    next(p for name, p in model.named_parameters() if "vis" in name).requires_grad_(True)
    assert trains_vision(model)


def test_a_lora_of_the_language_model_does_not_train_vision(twin):
    from peft import LoraConfig, get_peft_model

    loaded = load_twin(twin("qwen2_5_vl"))
    language = get_peft_model(loaded.fresh_model(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert not trains_vision(language)
    both = get_peft_model(loaded.fresh_model(), LoraConfig(target_modules=["q_proj", "qkv"]))
    assert trains_vision(both)
