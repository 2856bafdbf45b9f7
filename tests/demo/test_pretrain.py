"""Pre-training sees what SFT and GRPO will see."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from lcot_plugin.demo.model import MODEL_DIR, new_model
from lcot_plugin.demo.pretrain import IGNORED, BatchMaker, CellBank, Phase, forward_with_media, train
from lcot_plugin.demo.task import QUESTION, draw_cell


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(MODEL_DIR)


@pytest.fixture
def batches(processor) -> BatchMaker:
    return BatchMaker(processor, CellBank(num_per_symbol=3, seed=0), seed=1, held_out=set())


def test_patches_equal_the_image_processor(processor, batches: BatchMaker) -> None:
    rng = np.random.RandomState(0)
    rows = [[draw_cell(text, rng) for text in row] for row in (["7"], ["1", "-2", "+3"], ["0"] + ["+9"] * 5)]
    pictures = [Image.fromarray(np.concatenate(row, axis=1)).convert("RGB") for row in rows]
    expected = processor.image_processor(images=pictures, return_tensors="pt")
    ours = batches.patches([cell for row in rows for cell in row])
    torch.testing.assert_close(ours, expected["pixel_values"], rtol=0, atol=1e-5)
    assert expected["image_grid_thw"].tolist() == [[1, 2, 2 * len(row)] for row in rows]


def test_a_batch_is_prompt_then_response(processor, batches: BatchMaker) -> None:
    batch = batches.batch(Phase("", 3, 6, 1, short_answer_share=0.5), size=32)
    decode = processor.tokenizer.decode
    seen = set()
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        trained = labels != IGNORED
        assert torch.equal(ids[trained], labels[trained])
        text, response = decode(ids[mask.bool()]), decode(ids[trained])
        assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
        assert text.endswith(f"<|im_start|>assistant\n{response}")
        assert response.endswith("<|im_end|>\n")
        assert ("boxed" in response) == (QUESTION in text)
        seen.add("boxed" in response)
    assert seen == {True, False}
    num_image_tokens = int((batch["input_ids"] == batches.image_token_id).sum())
    assert len(batch["pixel_values"]) == 4 * num_image_tokens


def test_a_drill_trains_results_only_and_never_chains(processor, batches: BatchMaker) -> None:
    batch = batches.batch(Phase("", 3, 6, 1, fact_share=1.0, max_right=4), size=8)
    assert "pixel_values" not in batch
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        text = processor.tokenizer.decode(ids).split("<|im_start|>assistant\n")[1]
        lines = text.removesuffix("<|im_end|>\n").split("\n")
        assert processor.tokenizer.decode(labels[labels != IGNORED]) == "".join(line[-1] for line in lines)
        assert all(eval(line[:3]) % 10 == int(line[-1]) and int(line[2]) <= 4 for line in lines)
        assert any(before[-1] != after[0] for before, after in pairwise(lines))


def test_held_out_problems_are_never_drawn(processor) -> None:
    held_out = {f"{a}+{b}" for a in range(10) for b in range(10)}
    batches = BatchMaker(processor, CellBank(num_per_symbol=1, seed=0), seed=1, held_out=held_out)
    batch = batches.batch(Phase("", 2, 2, 1), size=50)
    assert "+" not in processor.tokenizer.decode(batch["input_ids"][batch["labels"] != IGNORED])


def test_training_is_reproducible_and_lowers_the_loss(processor, tmp_path: Path) -> None:
    def run() -> dict[str, torch.Tensor]:
        batches = BatchMaker(processor, CellBank(num_per_symbol=2, seed=0), seed=1, held_out=set())
        model = new_model(MODEL_DIR, seed=0)
        batch = batches.batch(Phase("", 1, 1, 1), size=64)
        forward = forward_with_media(model)
        before = forward(batch).loss.item()
        train(model, batches, [Phase("read 1 cell", 1, 1, 8)])
        assert forward(batch).loss.item() < before - 0.3
        return model.state_dict()

    first, second = run(), run()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
