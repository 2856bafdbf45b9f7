"""Make the embedded base weights from scratch: `python -m lcot_plugin.demo.pretrain --output DIR`.

Out: DIR with tokenizer, processor, configuration and `model.safetensors`, the content of `lcot_plugin/demo/model`.
About ten minutes on one CPU core.

What the base model is taught:

1. to read: first one cell, then up to three, then up to six. Longer rows from the start, or no learning-rate warm-up,
   and it never learns to look at the picture;
2. the 200 sums and differences of two digits modulo 10, as lines of text that have nothing to do with each other. From
   the small operands to the large: all at once stays at chance;
3. the form of a short answer, `\\boxed{d}`, on right answers. It learns the form and that any digit is possible; which
   digit it is, it cannot find in one step.

What it is not taught: to chain what it knows. There is no thought in any of its responses, and no line goes on from the
one before; that is what the SFT stage is there to add. The problems of the test set are kept out of all phases.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import trange

from lcot_plugin.demo.data import DEVELOPMENT_SEED, SET_SIZES, build_sets
from lcot_plugin.demo.model import new_model, write_config, write_processor, write_weights
from lcot_plugin.demo.task import (
    NUM_OPERANDS,
    QUESTION,
    READING_QUESTION,
    Problem,
    cells_of,
    draw_cell,
    draw_chain,
)

IGNORED = -100
"""Label of a position that carries no loss."""


@dataclass(frozen=True)
class Phase:
    """One step of the curriculum."""

    name: str
    min_operands: int
    max_operands: int
    num_steps: int
    fact_share: float = 0.0
    """Share of the batches that drill sums and differences, without a picture."""
    short_answer_share: float = 0.0
    """Share of the rows with a picture that ask for the result; the others ask to read it."""
    drill_picture_share: float = 0.0
    """Share of the drill's rows that show a picture all the same, of something else. Without such rows the sums are
    known in pure text only, and SFT has to teach them again."""
    max_right: int = 9
    """Largest right operand of the drill."""
    learning_rate: float = 1e-3


CURRICULUM = [
    Phase("read 1 cell", 1, 1, 250),
    Phase("read 1 to 3 cells", 1, 3, 300),
    Phase("read 2 to 6 cells", 2, max(NUM_OPERANDS), 400),
    Phase("add and subtract 0 and 1", 1, 1, 110, fact_share=1.0, max_right=1),
    Phase("add and subtract up to 2", 1, 1, 60, fact_share=1.0, max_right=2),
    Phase("add and subtract up to 4", 1, 1, 100, fact_share=1.0, max_right=4),
    Phase("add and subtract up to 9", 1, 1, 200, fact_share=1.0),
    Phase(
        "all three",
        min(NUM_OPERANDS),
        max(NUM_OPERANDS),
        300,
        fact_share=0.4,
        short_answer_share=0.5,
        drill_picture_share=0.7,
    ),
]
BATCH_SIZE = 64
NUM_DRILL_LINES = 16
DRILL_QUESTION = "What are the results modulo 10?"
NUM_WARMUP_STEPS = 60


class CellBank:
    """Pre-drawn cells, so that a batch costs a look-up per cell and not a drawing."""

    def __init__(self, num_per_symbol: int, seed: int) -> None:
        rng = np.random.RandomState(seed)
        texts = [f"{sign}{digit}" for sign in ("", "+", "-") for digit in range(10)]
        self.cells = {text: np.stack([draw_cell(text, rng) for _ in range(num_per_symbol)]) for text in texts}

    def draw(self, text: str, rng: np.random.RandomState) -> np.ndarray:
        """One cell, [28, 28] uint8."""
        bank = self.cells[text]
        return bank[rng.randint(len(bank))]


class BatchMaker:
    """Turns drawn chains into model inputs, token for token and pixel for pixel as LLaMA-Factory's SFT does."""

    def __init__(self, processor: Any, bank: CellBank, seed: int, held_out: set[str]) -> None:
        self.tokenizer = processor.tokenizer
        self.bank = bank
        self.rng = np.random.RandomState(seed)
        self.held_out = held_out
        self.image_token_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.mean = torch.tensor(processor.image_processor.image_mean).view(1, 3, 1, 1, 1)
        self.std = torch.tensor(processor.image_processor.image_std).view(1, 3, 1, 1, 1)
        self.equals_id = self.tokenizer.convert_tokens_to_ids("=")
        self.processor = processor
        self.prompts: dict[tuple[str, int], list[int]] = {}

    def batch(self, phase: Phase, size: int) -> dict[str, torch.Tensor]:
        """Draw a batch of `size` rows, or of half as many, twice as long, for a drill.

        Ids, mask and labels are [rows, length], pixels [4 * cells, 1176], grids [pictures, 3].
        """
        rows: list[tuple[list[int], list[int]]] = []
        cells: list[np.ndarray] = []
        grids: list[list[int]] = []
        drill = self.rng.random_sample() < phase.fact_share
        size = size // 2 if drill else size
        for _ in range(size):
            pixels: list[np.ndarray] = []
            if not drill or self.rng.random_sample() < phase.drill_picture_share:
                problem, pixels = self._draw(phase)
            if drill:
                question, response = DRILL_QUESTION, self._draw_drill(phase.max_right)
            elif self.rng.random_sample() < phase.short_answer_share:
                question, response = QUESTION, problem.short_response
            else:
                question, response = READING_QUESTION, problem.expression
            rows.append((self._prompt(question, len(pixels)), self.tokenizer(f"{response}<|im_end|>\n")["input_ids"]))
            if pixels:
                cells += pixels
                grids.append([1, 2, 2 * len(pixels)])

        length = max(len(prompt_ids) + len(response_ids) for prompt_ids, response_ids in rows)
        input_ids = torch.full((size, length), self.tokenizer.pad_token_id)
        labels = torch.full((size, length), IGNORED)
        attention_mask = torch.zeros(size, length, dtype=torch.long)
        for row, (prompt_ids, response_ids) in enumerate(rows):
            num_tokens = len(prompt_ids) + len(response_ids)
            input_ids[row, :num_tokens] = torch.tensor(prompt_ids + response_ids)
            labels[row, len(prompt_ids) : num_tokens] = torch.tensor(response_ids)
            if drill:  # its operands are random: only what follows "=" can be learned
                before_result = input_ids[row, : num_tokens - 1] == self.equals_id
                labels[row, 1:num_tokens].masked_fill_(~before_result, IGNORED)
            attention_mask[row, :num_tokens] = 1
        media = {"pixel_values": self.patches(cells), "image_grid_thw": torch.tensor(grids)} if cells else {}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **media}

    def patches(self, cells: Sequence[np.ndarray]) -> torch.Tensor:
        """What Qwen2.5-VL's image processor makes of rows of these cells, [4 * cells, 3 * 2 * 14 * 14] float32.

        A cell is one merged token, so its four patches stand together: upper left, upper right, lower left, lower
        right. Each is repeated over the two frames of a temporal patch.
        """
        grey = torch.from_numpy(np.stack(cells)).float() / 255
        grey = grey.view(-1, 2, 14, 2, 14).permute(0, 1, 3, 2, 4).reshape(-1, 1, 1, 14, 14)
        return ((grey - self.mean) / self.std).expand(-1, 3, 2, 14, 14).reshape(-1, 3 * 2 * 14 * 14)

    def _draw(self, phase: Phase) -> tuple[Problem, list[np.ndarray]]:
        while True:
            problem = Problem(*draw_chain(self.rng, range(phase.min_operands, phase.max_operands + 1)), image=None)  # type: ignore[arg-type]
            if problem.expression not in self.held_out:
                return problem, [self.bank.draw(text, self.rng) for text in cells_of(problem.start, problem.operations)]

    def _draw_drill(self, max_right: int) -> str:
        lines = []
        for _ in range(NUM_DRILL_LINES):
            left, right, sign = self.rng.randint(10), self.rng.randint(max_right + 1), "+-"[self.rng.randint(2)]
            result = (left + right if sign == "+" else left - right) % 10
            lines.append(f"{left}{sign}{right}={result}")
        return "\n".join(lines)

    def _prompt(self, question: str, num_cells: int) -> list[int]:
        """Token ids of the prompt, its placeholder repeated once per cell; without a picture for 0 cells."""
        if (question, num_cells) not in self.prompts:
            picture = [{"type": "image"}] if num_cells else []
            turn = {"role": "user", "content": [*picture, {"type": "text", "text": question}]}
            text = self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
            text = text.replace("<|image_pad|>", "<|image_pad|>" * num_cells)
            self.prompts[question, num_cells] = self.tokenizer(text)["input_ids"]
        return self.prompts[question, num_cells]


def forward_with_media(model: torch.nn.Module) -> Callable[[dict[str, torch.Tensor]], Any]:
    """The model's forward pass for a batch, with the token types that transformers 5 wants and 4 does not know."""
    wants_types = "mm_token_type_ids" in inspect.signature(model.forward).parameters
    image_token_id = model.config.image_token_id

    def forward(batch: dict[str, torch.Tensor]) -> Any:
        types = {"mm_token_type_ids": (batch["input_ids"] == image_token_id).int()} if wants_types else {}
        return model(**batch, **types, use_cache=False)

    return forward


def train(model: torch.nn.Module, batches: BatchMaker, curriculum: Sequence[Phase] = CURRICULUM) -> None:
    """Run the curriculum on `model` in place."""
    forward = forward_with_media(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for phase in curriculum:
        progress = trange(1, phase.num_steps + 1, desc=phase.name)
        for step in progress:
            decay = max(0.1, 1 - step / phase.num_steps)
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate * min(1.0, step / NUM_WARMUP_STEPS) * decay
            loss = forward(batches.batch(phase, BATCH_SIZE)).loss
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 10 == 0:
                progress.set_postfix(loss=f"{loss.item():.3f}")
        facts = f", sums {accuracy(model, batches, replace(phase, fact_share=1.0)):.1%}" if phase.fact_share else ""
        reading = accuracy(model, batches, replace(phase, fact_share=0.0, short_answer_share=0.0))
        print(f"{phase.name}: pictures read {reading:.1%}{facts}", flush=True)


@torch.no_grad()
def accuracy(model: torch.nn.Module, batches: BatchMaker, phase: Phase, size: int = 200) -> float:
    """Share of the phase's responses of which every token is the most likely one given the right tokens before it."""
    model.eval()
    batch = batches.batch(phase, size)
    labels = batch.pop("labels")[:, 1:]
    predicted = forward_with_media(model)(batch).logits[:, :-1].argmax(-1)
    model.train()
    return ((predicted == labels) | (labels == IGNORED)).all(dim=1).float().mean().item()


def make_base_model(output: Path, seed: int = 0, curriculum: Sequence[Phase] = CURRICULUM) -> None:
    """Write a trained base model into `output`."""
    from transformers import AutoProcessor

    write_processor(output)
    write_config(output)
    model = new_model(output, seed)
    held_out = {problem.expression for problem in build_sets(SET_SIZES, DEVELOPMENT_SEED)["test"]}
    batches = BatchMaker(AutoProcessor.from_pretrained(output), CellBank(400, seed), seed + 1, held_out)
    train(model, batches, curriculum)
    write_weights(model, output)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make the embedded base model from scratch.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_base_model(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
