"""From rows of the tokenised data set to a pack, in this process and in a data loader's workers."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer
from loaded_twins import FAMILIES, MROPE_FAMILIES, ONE_IMAGE, SHORT_TEXT, TEXT, TWO_IMAGES, LoadedTwin, load_twin
from PIL import Image
from torch.utils.data import DataLoader
from twins import TWIN_TEMPLATES

from lcot_plugin.errors import DataError
from lcot_plugin.integration.media import PromptEncoder
from lcot_plugin.integration.packing_collator import PackCollator, PackItem
from lcot_plugin.packing.attention import segment_attention
from lcot_plugin.types import EncodedPrompt, PackedBatch

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

RESPONSE = [5, 17, 300]


def collator_of(loaded: LoadedTwin, **settings: Any) -> PackCollator:
    module = load_tokenizer(ModelArguments(model_name_or_path=str(loaded.directory)))
    data_args = DataArguments(template=TWIN_TEMPLATES[loaded.family], cutoff_len=1024)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    return PackCollator(template, module["processor"], loaded.vlm, **settings)


def white_image(loaded: LoadedTwin) -> EncodedPrompt:
    collator = collator_of(loaded)
    return PromptEncoder(collator.template, collator.processor, loaded.vlm).white_image(loaded.tokenizer)


def row_of(loaded: LoadedTwin, which: int) -> dict[str, Any]:
    """A prompt and a response of three tokens as LLaMA-Factory tokenises them: no media is None or empty."""
    record = loaded.prompts[which].record
    ids = [*record.input_ids, *RESPONSE]
    labels = [-100] * len(record.input_ids) + RESPONSE
    return {"input_ids": ids, "labels": labels, "images": record.images or None, "videos": [], "audios": None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_holds_what_each_example_holds(family, twin):
    loaded = load_twin(twin(family))
    which = [TWO_IMAGES, TEXT, ONE_IMAGE]
    found = collator_of(loaded)([[row_of(loaded, index) for index in which]])
    batch = found["packed"]
    assert found["input_ids"] is batch.input_ids
    ids = [token for index in which for token in row_of(loaded, index)["input_ids"]]
    assert batch.input_ids.tolist() == [ids]
    assert batch.target_ids.tolist() == RESPONSE * 3
    for name, tensor in batch.media.items():
        parts = [loaded.prompts[index].media[name] for index in (TWO_IMAGES, ONE_IMAGE)]
        assert torch.equal(tensor, torch.cat(parts)), name
    assert batch.position_ids.shape == ((3, 1, len(ids)) if family in MROPE_FAMILIES else (1, len(ids)))
    if family == "llava_onevision":
        assert batch.media["batch_num_images"].tolist() == [2, 1]
    assert batch.num_patches > 0


def test_a_pack_of_text_has_no_media(twin):
    loaded = load_twin(twin("qwen3_vl"))
    batch = collator_of(loaded)([[row_of(loaded, TEXT)]])["packed"]
    assert batch.media == {} and batch.num_patches == 0
    text_model = PackCollator(collator_of(loaded).template, None, loaded.vlm)
    assert torch.equal(text_model([[row_of(loaded, TEXT)]])["input_ids"], batch.input_ids)


def test_forms_of_a_pack(twin):
    loaded = load_twin(twin("llava"))
    collate = collator_of(loaded, example_weighting=True)
    rows = [row_of(loaded, TEXT), row_of(loaded, SHORT_TEXT)]
    weights = torch.full((6,), 1 / 3)
    for batch in ([rows], rows, [PackItem(rows)]):
        torch.testing.assert_close(collate(batch)["packed"].target_weights, weights)
    assert collate([PackItem(rows, idle=True)])["packed"].target_weights.tolist() == [0.0] * 6
    with pytest.raises(AssertionError, match="one pack is one batch"):
        collate([PackItem(rows), PackItem(rows)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_filler_uses_the_vision_tower_and_changes_nothing(family, twin):
    loaded = load_twin(twin(family))
    rows = [[row_of(loaded, TEXT), row_of(loaded, SHORT_TEXT)]]
    plain = collator_of(loaded)(rows)["packed"]
    filled = collator_of(loaded, image_filler=white_image(loaded))(rows)["packed"]
    assert filled.segments.lengths[:-1] == plain.segments.lengths
    for name in ("target_columns", "target_ids", "target_weights"):
        assert torch.equal(getattr(filled, name), getattr(plain, name))

    def gradients(batch: PackedBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
        with segment_attention(loaded.model, batch.segments):
            logits = loaded.model(**inputs, **batch.media, **batch.token_types).logits[0, batch.target_columns]
            found = torch.autograd.grad(
                logits.log_softmax(-1).gather(-1, batch.target_ids[:, None]).sum(),
                list(loaded.model.parameters()),
                allow_unused=True,
            )
        return logits.detach(), dict(zip((n for n, _ in loaded.model.named_parameters()), found, strict=True))

    expected_logits, expected = gradients(plain)
    logits, found = gradients(filled)
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=0)
    _, of_images = gradients(collator_of(loaded)([[row_of(loaded, ONE_IMAGE)]])["packed"])
    for name, gradient in found.items():
        assert (gradient is None) == (of_images[name] is None), name
        if expected[name] is None:
            assert gradient is None or not gradient.any(), name
        else:
            error = (gradient - expected[name]).norm() / expected[name].norm()
            assert error < 1e-5, (name, error)


def test_the_filler_is_left_out_where_there_is_an_image(twin):
    loaded = load_twin(twin("gemma3"))
    rows = [[row_of(loaded, TEXT), row_of(loaded, ONE_IMAGE)]]
    batch = collator_of(loaded, image_filler=white_image(loaded))(rows)["packed"]
    assert len(batch.segments.lengths) == 2 and len(batch.media["pixel_values"]) == 1


def png(*, broken: bool = False) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((112, 84), 50).convert("RGB").save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    if broken:
        start = data.index(b"IDAT") + 20
        data[start : start + 200] = bytes(200)
    return bytes(data)


def test_a_broken_picture_is_not_trained_on(twin, monkeypatch):
    loaded = load_twin(twin("llava"))
    collate = collator_of(loaded)
    whole = {**row_of(loaded, ONE_IMAGE), "images": [png()]}
    broken = {**whole, "images": [png(broken=True)]}
    batch = collate([[whole, broken]])["packed"]
    assert batch.target_ids.tolist() == [*RESPONSE, RESPONSE[-1]]
    assert len(batch.media["pixel_values"]) == 2
    monkeypatch.setattr(collate.template, "bad_record_policy", "error", raising=False)
    with pytest.raises(DataError, match="bad_record_policy: drop"):
        collate([[broken]])


def test_media_that_the_plugin_refuses(twin):
    loaded = load_twin(twin("llava"))
    row = {**row_of(loaded, TEXT), "videos": ["a.mp4"]}
    with pytest.raises(DataError, match=r"The media of a record \(1 videos\) cannot be read: .*video"):
        collator_of(loaded)([[row]])


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "qwen3_vl"])
def test_pickled_it_leaves_the_model_behind(family, twin):
    loaded = load_twin(twin(family))
    collate = collator_of(loaded, image_filler=white_image(loaded))
    size_of_weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    rest = len(pickle.dumps((collate.template, collate.processor, collate.image_filler)))
    pickled = pickle.dumps(collate)
    assert len(pickled) - rest < size_of_weights / 10
    rows = [[row_of(loaded, index) for index in (TEXT, TWO_IMAGES, ONE_IMAGE)]]
    found, expected = pickle.loads(pickled)(rows)["packed"], collate(rows)["packed"]
    for name in ("input_ids", "position_ids", "target_columns", "target_ids", "target_weights"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.segments == expected.segments and found.num_patches == expected.num_patches


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_workers_decode(twin, tmp_path: Path):
    """Packs come out of a data loader with workers as they come without; pictures are paths until then."""
    loaded = load_twin(twin("qwen3_vl"))
    rows = [row_of(loaded, index) for index in (TEXT, ONE_IMAGE, TWO_IMAGES)]
    for index, row in enumerate(rows):
        paths = [tmp_path / f"{index}_{i}.png" for i in range(len(row["images"] or []))]
        for path, image in zip(paths, row["images"] or [], strict=True):
            image.save(path)
        row["images"] = [str(path) for path in paths]
    packs = [PackItem(rows[:2]), PackItem(rows[2:], idle=True)]
    collate = collator_of(loaded)
    loader = DataLoader(packs, batch_size=1, collate_fn=collate, num_workers=1, multiprocessing_context="fork")  # type: ignore[arg-type]
    for found, item in zip(loader, packs, strict=True):
        expected = collate([item])["packed"]
        assert found["packed"].media.keys() == expected.media.keys()
        for name, tensor in expected.media.items():
            assert torch.equal(found["packed"].media[name], tensor), name
        assert torch.equal(found["packed"].target_weights, expected.target_weights)
        assert found["packed"].segments == expected.segments
