"""Rollouts: the in-process engine beside transformers' `generate`, same model, same rows at once, same machine.

    python benchmarks/rollout.py [--quick] [--settings main,text] [--arms ours,generate] [--threads 2]

A Qwen2.5-VL with random weights answers prompts G times. How long every completion is was drawn beforehand (lognormal;
at sigma 0.84 the 95th percentile is four times the median), because random weights end nothing: our engine has the
lengths as limits of its completions, `generate` as a StoppingCriteria per row. `generate` takes as many prompts at a
time as fill the rows, with num_return_sequences, its default cache and SDPA; it draws from the whole vocabulary like
ours. What counts are tokens of completions up to their ends, over the time of the whole rollout, prompts and images
included. A third arm is our engine as families are decoded that it cannot pack (padded batches, the prompt once).

On a machine that does other work too, the processor seconds (`cpu_vs_generate`) of --threads 1 say more than the
speeds: threads that wait for each other burn them.

The log-probabilities that our engine noted are compared with a plain forward pass of some completions. The last line is
JSON. Results are kept in benchmarks/results/rollout.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

os.environ["HF_HUB_OFFLINE"] = "1"

IMAGE, VIDEO, VISION_START, VISION_END, PAD = range(5)
FIRST_WORD = 10
SIGMA = 0.843
"""Of the logarithm of the lengths: the 95th percentile is four times the median."""


@dataclass(frozen=True)
class Setting:
    """One rollout."""

    title: str
    prompts: int = 16
    group_size: int = 8
    rows: int = 32
    """Completions decoded at once."""
    image_side: int = 32
    """Patches along each side of the prompt's image, four of which become a token; 0 for none."""
    text_tokens: tuple[int, int] = (60, 100)
    median: int = 120
    sigma: float = SIGMA
    longest: int = 1000
    hidden: int = 512
    layers: int = 6
    vocabulary: int = 32768


MAIN = Setting("G 8, image of 256 tokens")
SETTINGS = {
    "main": MAIN,
    "text": replace(MAIN, title="G 8, text only", image_side=0),
    "image_1024": replace(MAIN, title="G 8, image of 1,024 tokens", prompts=8, image_side=64),
    "even": replace(MAIN, title="G 8, even lengths (sigma 0.2)", sigma=0.2, prompts=8),
    "group_16": replace(MAIN, title="G 16, 32 rows", prompts=8, group_size=16),
    "rows_64": replace(MAIN, title="G 8, 64 rows", rows=64),
}
QUICK = replace(
    MAIN, title="quick: G 8, image of 64 tokens", prompts=8, rows=16, image_side=16, median=24, longest=200, hidden=256,
    layers=3, vocabulary=4096,
)  # fmt: skip


def build(setting: Setting) -> tuple[Any, Any]:
    """A Qwen2.5-VL with heads of 64 dimensions, four of which share keys and values, and a tokenizer of words."""
    import torch
    import transformers
    import twins

    heads = setting.hidden // 64
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": setting.vocabulary,
            "hidden_size": setting.hidden,
            "intermediate_size": 4 * setting.hidden,
            "num_hidden_layers": setting.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 4,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": PAD,
            **twins.mrope([8, 12, 12]),
        },
        vision_config={
            "depth": 8,
            "hidden_size": 320,
            "intermediate_size": 864,
            "num_heads": 4,
            "out_hidden_size": setting.hidden,
            "fullatt_block_indexes": [3, 7],
            "window_size": 112,
            "patch_size": 14,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    return model.float().eval(), word_tokenizer(setting.vocabulary, PAD)


def word_tokenizer(vocabulary: int, pad: int) -> Any:
    """A token for every row of the embedding, so that none is excluded from sampling."""
    import transformers
    from tokenizers import Tokenizer, models

    words = {f"<{index}>": index for index in range(vocabulary)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, f"<{pad}>")), pad_token=f"<{pad}>"
    )


def draw_prompts(setting: Setting, config: Any, first_word: int = FIRST_WORD) -> list[Any]:
    """config: of the model. first_word: from here on ids are words."""
    import torch

    from benchmarks.grpo_update_sides import values_of_patch
    from lcot_plugin.types import EncodedPrompt, PromptRecord

    generator = random.Random(0)
    torch.manual_seed(0)
    prompts = []
    for index in range(setting.prompts):
        num_words = generator.randint(*setting.text_tokens)
        ids = [generator.randrange(first_word, setting.vocabulary) for _ in range(num_words)]
        media = {}
        if setting.image_side:
            placeholders = [config.image_token_id] * (setting.image_side**2 // 4)
            image = [config.vision_start_token_id, *placeholders, config.vision_end_token_id]
            ids = [*ids[:20], *image, *ids[20:]]
            media = {
                "pixel_values": torch.randn(setting.image_side**2, values_of_patch(config)),
                "image_grid_thw": torch.tensor([[1, setting.image_side, setting.image_side]]),
            }
        record = PromptRecord(ids, [], question="", gold="", source="random", record=index)
        prompts.append(EncodedPrompt(record, media))
    return prompts


def draw_lengths(setting: Setting) -> list[list[int]]:
    """[prompts][group_size]."""
    generator = random.Random(1)

    def one() -> int:
        length = generator.lognormvariate(math.log(setting.median), setting.sigma)
        return min(max(round(length), 4), setting.longest)

    return [[one() for _ in range(setting.group_size)] for _ in range(setting.prompts)]


# --- the arms ---------------------------------------------------------------------------------------------------------


@contextmanager
def given_lengths(lengths: list[list[int]]) -> Iterator[None]:
    """Every completion ends where it was drawn to end."""
    from lcot_plugin.rollout.batch import BatchRollout
    from lcot_plugin.rollout.shared_prefix import SharedPrefixRollout

    ways = (BatchRollout, SharedPrefixRollout)
    originals = [way.limit for way in ways]
    for way in ways:
        way.limit = lambda self, prompt, index: lengths[prompt][index]
    try:
        yield
    finally:
        for way, original in zip(ways, originals, strict=True):
            way.limit = original


def run_engine(
    setting: Setting, model: Any, tokenizer: Any, prompts: list[Any], lengths: list[list[int]], bar: Any, shared: bool
) -> list[Any]:
    from lcot_plugin.packing.batch import join_media
    from lcot_plugin.rollout.transformers_engine import TransformersEngine
    from lcot_plugin.types import SamplingParams
    from lcot_plugin.vlm import VisionLanguageModel

    vlm = VisionLanguageModel(model, tokenizer)
    engine = TransformersEngine(
        vlm,
        tokenizer,
        [],
        lambda some: join_media([prompt.media for prompt in some], ""),
        setting.rows,
        shared_prefix=shared,
    )
    sampling = SamplingParams(setting.group_size, max(map(max, lengths)))
    with given_lengths(lengths):
        return engine.generate(
            model, prompts, sampling, range(len(prompts)), lambda num_ended, num_tokens: bar.update(num_tokens)
        )


def run_generate(
    setting: Setting, model: Any, tokenizer: Any, prompts: list[Any], lengths: list[list[int]], bar: Any
) -> list[int]:
    """The lengths of what `generate` wrote, row after row."""
    import torch
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    from lcot_plugin.packing.batch import join_media

    class AtLength(StoppingCriteria):
        def __init__(self, limits: torch.Tensor, start: int) -> None:
            self.limits, self.start = limits, start

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **arguments: Any) -> torch.Tensor:
            written = input_ids.shape[1] - self.start
            bar.update(int((self.limits >= written).sum()))
            return self.limits <= written

    at_once = setting.rows // setting.group_size
    pad, image = tokenizer.pad_token_id, model.config.image_token_id
    written = []
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        sequences = [prompt.record.input_ids for prompt in some]
        width = max(map(len, sequences))
        ids = torch.tensor([[pad] * (width - len(own)) + own for own in sequences], device=model.device)
        mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in sequences], device=model.device)
        limits = torch.tensor(lengths[first : first + at_once], device=model.device).flatten()
        media = join_media([prompt.media for prompt in some], "")
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **({"mm_token_type_ids": (ids == image).long()} if "mm_token_type_ids" in forward_arguments(model) else {}),
            **{key: tensor.to(model.device) for key, tensor in media.items()},
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=setting.group_size,
                max_new_tokens=int(limits.max()),
                pad_token_id=pad,
            ),
            stopping_criteria=StoppingCriteriaList([AtLength(limits, width)]),
        )
        # A row that has ended goes on beside the others; what it writes then is not counted.
        written += limits.clamp(max=output.shape[1] - width).tolist()
    return written


def forward_arguments(model: Any) -> Any:
    import inspect

    return inspect.signature(model.forward).parameters


def max_difference(model: Any, tokenizer: Any, groups: list[Any], num: int) -> float:
    """Between noted log-probabilities and a plain forward pass, over the first completions of `num` prompts."""
    import torch

    from lcot_plugin.rollout.sampling import policy_log_probs
    from lcot_plugin.vlm import VisionLanguageModel

    vlm = VisionLanguageModel(model, tokenizer)
    banned = torch.tensor(vlm.banned_token_ids)
    differences = []
    for group in groups[:num]:
        prompt, completion = group.prompt.record.input_ids, group.completions[0]
        ids = torch.tensor([prompt + completion.token_ids])
        with torch.no_grad():
            logits = model(
                input_ids=ids, use_cache=False, **group.prompt.media, **vlm.token_type_arguments(ids)
            ).logits[0, len(prompt) - 1 : -1]
        expected = policy_log_probs(logits, 1.0, banned).gather(-1, ids[0, len(prompt) :, None])[:, 0]
        differences.append((expected - torch.tensor(completion.sampler_logps)).abs().max().item())
    return max(differences)


def measure(setting: Setting, arms: list[str]) -> dict[str, Any]:
    """Tokens per second of each arm, and the largest difference of a log-probability."""
    from tqdm import tqdm

    model, tokenizer = build(setting)
    prompts, lengths = draw_prompts(setting, model.config), draw_lengths(setting)
    total = sum(map(sum, lengths))
    figures: dict[str, Any] = {
        "tokens": total,
        "longest": max(map(max, lengths)),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    few = replace(setting, title="warm-up", prompts=2, rows=2 * setting.group_size)
    few_lengths = [[4] * setting.group_size] * 2
    run_engine(few, model, tokenizer, prompts[:2], few_lengths, tqdm(disable=True), shared=True)
    run_generate(few, model, tokenizer, prompts[:2], few_lengths, tqdm(disable=True))
    for arm in arms:
        with tqdm(total=total, desc=f"{setting.title}: {arm}", unit="tok", unit_scale=True) as bar:
            started, cpu_started = time.perf_counter(), time.process_time()
            if arm == "generate":
                written = run_generate(setting, model, tokenizer, prompts, lengths, bar)
            else:
                groups = run_engine(setting, model, tokenizer, prompts, lengths, bar, shared=arm == "ours")
                written = [len(completion.token_ids) for group in groups for completion in group.completions]
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        assert sum(written) == total, (arm, sum(written), total)
        figures[arm], figures[f"{arm}_cpu_seconds"] = total / seconds, cpu_seconds
        if arm == "ours":
            figures["max_abs_difference"] = max_difference(model, tokenizer, groups, num=3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, a minute")
    parser.add_argument("--settings", default=",".join(SETTINGS), help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--arms", default="ours,generate,batch")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    chosen = {"quick": QUICK} if arguments.quick else {name: SETTINGS[name] for name in arguments.settings.split(",")}
    arms = arguments.arms.split(",")
    print(
        f"{date.today()}, {platform.machine()}, {arguments.threads} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    print(f"| | completions | tokens | longest | {' | '.join(f'{arm}, tokens/s' for arm in arms)} | vs generate |")
    print("|---" * (5 + len(arms)) + "|")
    results = {}
    for name, setting in chosen.items():
        figures = results[name] = measure(setting, arms)
        ratio = figures["ours"] / figures["generate"] if {"ours", "generate"} <= set(arms) else math.nan
        figures["vs_generate"] = ratio
        if not math.isnan(ratio):
            figures["cpu_vs_generate"] = figures["generate_cpu_seconds"] / figures["ours_cpu_seconds"]
        speeds = " | ".join(f"{figures[arm]:.1f}" for arm in arms)
        print(
            f"| {setting.title} | {setting.prompts * setting.group_size} | {figures['tokens']:,} | "
            f"{figures['longest']:,} | {speeds} | {ratio:.2f} |",
            flush=True,
        )
    first = next(iter(results.values()))
    print(
        json.dumps(
            {
                "vs_generate": round(first["vs_generate"], 3),
                "cpu_vs_generate": round(first.get("cpu_vs_generate", math.nan), 3),
                "max_abs_difference": max(figures.get("max_abs_difference", 0.0) for figures in results.values()),
                "parameters": first["parameters"],
                "settings": {
                    name: {key: round(value, 3) for key, value in figures.items() if key not in ("max_abs_difference",)}
                    for name, figures in results.items()
                },
            }
        )
    )


if __name__ == "__main__":
    main()
