"""Tokens that template, processor and model must agree on, and the model's context.

In: the recipe with its tokenizer, the model without weights. Out: findings.
"""

from __future__ import annotations

from typing import Any

from lcot_plugin.integration.data_sets import DataRecipe
from lcot_plugin.integration.grpo import context_length, end_token_ids
from lcot_plugin.integration.recipe_doctor.lines import GOOD, NOTE, WRONG, Line
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.vlm import VisionLanguageModel

QUESTION, ANSWER = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "It is 2."}


def token_lines(run: RunArguments, recipe: DataRecipe, model: Any, longest: int | None) -> list[Line]:
    """longest: tokens of the longest record (prompt, in stage grpo) that is trained on, where records were read."""
    lines = [*_image_line(recipe, model), _end_line(run, recipe, model)]
    limit = context_length(model)
    return lines if limit is None else [*lines, _context_line(run, limit, longest)]


def _image_line(recipe: DataRecipe, model: Any) -> list[Line]:
    plugin, tokenizer = recipe.template.mm_plugin, recipe.tokenizer
    vlm = VisionLanguageModel(model, tokenizer, (plugin.image_token, plugin.video_token, plugin.audio_token))
    if vlm.image_token_id is None:
        return []
    ids = {"the model's": vlm.image_token_id}
    if plugin.image_token:
        ids[f"the template's ({plugin.image_token})"] = tokenizer.convert_tokens_to_ids(plugin.image_token)
    else:
        ids["the template's (it has none)"] = None
    # Families whose processor writes another token and repeats the model's in its place name that one image_token_id.
    of_processor = getattr(recipe.processor, "image_token_id", None)
    if isinstance(of_processor, int):
        ids["the processor's"] = of_processor
    text = ", ".join(f"{owner} is {token}" for owner, token in ids.items())
    if len(set(ids.values())) == 1:
        return [Line(GOOD, "image token", text)]
    return [Line(WRONG, "image token", f"{text}: choose the template of the model's family, or copy the model again.")]


def _end_line(run: RunArguments, recipe: DataRecipe, model: Any) -> Line:
    """Whether what ends an answer in training ends a completion."""
    ends = end_token_ids(recipe.template, recipe.tokenizer, model, run.finetuning.stop_strings())
    names = ", ".join(f"{recipe.tokenizer.convert_ids_to_tokens(token)!r}" for token in ends if token is not None)
    *_, (_, answer) = recipe.template.encode_multiturn(recipe.tokenizer, [QUESTION, ANSWER])
    if not names:
        return Line(WRONG, "end tokens", "neither template nor model names one: completions would not end.")
    if not set(answer) & set(ends):
        written = recipe.tokenizer.decode(answer[-4:])
        text = f"an answer of the template ends with {written!r}, which holds none of those that end a completion"
        return Line(WRONG, "end tokens", f"{text} ({names}): choose the template of the model's family.")
    return Line(GOOD, "end tokens", names)


def _context_line(run: RunArguments, limit: int, longest: int | None) -> Line:
    grpo = run.finetuning.stage == "grpo"
    new = run.generating.max_new_tokens if grpo else 0
    cutoff_len = run.data.cutoff_len
    text = f"{cutoff_len + new:,} tokens at most of the model's {limit:,}"
    if cutoff_len + new <= limit:
        return Line(GOOD, "context", text)
    lower = "cutoff_len or max_new_tokens" if grpo else "cutoff_len"
    if longest is not None and longest + new <= limit:
        seen = f"the longest record looked at needs {longest + new:,}"
        return Line(NOTE, "context", f"{text}, of which {seen}: lower {lower} to be safe.")
    return Line(WRONG, "context", f"{text}: lower {lower}.")
