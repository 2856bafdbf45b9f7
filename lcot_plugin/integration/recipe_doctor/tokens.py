"""Tokens that template, processor and model must agree on, and the model's context.

In: the recipe with its tokenizer, the model without weights. Out: findings.
"""

from __future__ import annotations

from typing import Any

from lcot_plugin.integration.data_sets import DataRecipe
from lcot_plugin.integration.grpo import context_length, end_token_ids
from lcot_plugin.integration.recipe_doctor.lines import GOOD, NOTE, WRONG, Line
from lcot_plugin.integration.refusals import RunArguments
from lcot_plugin.integration.template_check import prompt_ids
from lcot_plugin.vlm import VisionLanguageModel

QUESTION, ANSWER = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "It is 2."}


def token_lines(run: RunArguments, recipe: DataRecipe, model: Any, longest: int | None) -> list[Line]:
    """longest: tokens of the longest record (prompt, in stage grpo) that is trained on, where records were read."""
    lines = [*_image_line(recipe, model), _end_line(run, recipe, model)]
    limit = context_length(model)
    return lines if limit is None else [*lines, _context_line(run, limit, longest)]


def _image_line(recipe: DataRecipe, model: Any) -> list[Line]:
    """Whether a picture in a prompt becomes the tokens that the model puts its features at."""
    vlm = VisionLanguageModel(model, recipe.tokenizer)
    wanted = vlm.image_token_id
    if wanted is None or recipe.processor is None:
        return []
    name = f"{recipe.tokenizer.convert_ids_to_tokens(wanted)!r} ({wanted})"
    plugin = recipe.template.mm_plugin
    advice = "choose the template of the model's family, or copy the model again."
    # As text first: what a plugin writes for a picture may be another token than the one it is named by.
    if plugin.image_token is None:
        return [Line(WRONG, "image token", f"the template writes none for a picture, the model's is {name}: {advice}")]
    try:
        num = prompt_ids(recipe.template, recipe.processor, with_image=True).count(wanted)
    except Exception as error:  # the template of another family fails in ways of its own
        text = f"the template cannot write a picture ({type(error).__name__}: {' '.join(str(error).split())})"
        return [Line(WRONG, "image token", f"{text}: {advice}")]
    if not num:
        text = f"a picture becomes {plugin.image_token!r} in the template's prompt, without the model's {name}"
        return [Line(WRONG, "image token", f"{text}: {advice}")]
    return [Line(GOOD, "image token", f"a picture of 64 x 64 becomes {num} of the model's {name}")]


def _end_line(run: RunArguments, recipe: DataRecipe, model: Any) -> Line:
    """Whether what ends an answer in training ends a completion."""
    ends = end_token_ids(recipe.template, recipe.tokenizer, model, run.finetuning.stop_strings())
    names = ", ".join(f"{recipe.tokenizer.convert_ids_to_tokens(token)!r}" for token in ends if token is not None)
    *_, (_, answer) = recipe.template.encode_multiturn(recipe.tokenizer, [QUESTION, ANSWER])
    if recipe.template.efficient_eos:  # SFT writes it behind the last answer
        answer = [*answer, recipe.tokenizer.eos_token_id]
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
