"""Compares a template with the chat template that the model brings along.

In: a template as `get_template_and_fix_tokenizer` returns it, and the model's processor or tokenizer. Out: one sentence
about the first difference, for a warning of the run, `lcot doctor` and `lcot data check`.

Token ids are compared, images included: the same text can be cut into other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SYSTEM = "You solve problems."
QUESTION = "How many circles are there?"
ANSWER = "There are 3."
CONTEXT = 12
"""Tokens shown before a difference."""


def differences(template: Any, processor: Any) -> str | None:
    """Where the template writes other tokens than the model's chat template; None where they agree or it has none.

    template: an LLaMA-Factory template. processor: the model's processor, or a tokenizer, for which only text is
    compared.
    """
    if not getattr(processor, "chat_template", None):
        return None
    from jinja2.exceptions import TemplateError

    tokenizer = getattr(processor, "tokenizer", processor)
    with_image = hasattr(processor, "image_processor") and template.mm_plugin.image_token is not None
    # Named only where it is wanted: to templates that know no such switch it says nothing, to others it is the default.
    thinking = bool(getattr(template, "opens_thought", "") or getattr(template, "system_opening", ""))
    try:
        system = [("system", SYSTEM)] if _takes_system(processor) else []
        user, answer = ("user", QUESTION), ("assistant", ANSWER)
        conversations = {"a question": [*system, user], "a second question": [*system, user, answer, user]}
        if not _history_is_usable(processor, conversations["a question"], answer, thinking):
            del conversations["a second question"]
        for name, turns in conversations.items():
            for images in ([], [_image()]) if with_image else ([],):
                expected = _upstream_ids(processor, turns, images, thinking)
                actual = _template_ids(template, processor, turns, images)
                if expected != actual:
                    what = f"{name} with an image" if images else name
                    return f"{what}: {_first_difference(tokenizer, expected, actual)}"
    except TemplateError as error:
        return f"the model's chat template fails on a plain conversation: {error}"
    return None


def prompt_ids(template: Any, processor: Any, with_image: bool) -> list[int]:
    """What the template writes for a question, with a small picture or none."""
    return _template_ids(template, processor, [("user", QUESTION)], [_image()] if with_image else [])


def _image() -> Any:
    from PIL import Image

    # Small and square, so that it is one tile whatever the settings of tiling: those are not the template's.
    return Image.new("RGB", (64, 64), (200, 30, 30))


def _takes_system(processor: Any) -> bool:
    """Whether the system prompt reaches the text; some chat templates leave it out, others refuse it."""
    from jinja2.exceptions import TemplateError

    try:
        return SYSTEM in _upstream_text(processor, [("system", SYSTEM), ("user", QUESTION)], 0, False)
    except TemplateError:
        return False


def _history_is_usable(processor: Any, turns: list[tuple[str, str]], answer: tuple[str, str], thinking: bool) -> bool:
    """Whether an answer in the history continues the generation prompt and has an end token.

    LLaVA-OneVision's writes a blank there that the prompt has not, LLaVA-1.5's never ends an answer: nothing to follow.
    """
    prompt = _upstream_text(processor, turns, 0, thinking)
    history = _upstream_text(processor, [*turns, answer, turns[-1]], 0, thinking)
    # A thought that the prompt opens is left out of the history.
    header = prompt.partition("<think>")[0]
    return history.startswith(header) and history.partition(ANSWER)[2].lstrip().startswith("<")


def _upstream_text(processor: Any, turns: Sequence[tuple[str, str]], num_images: int, thinking: bool) -> str:
    """With the generation prompt."""
    is_processor = hasattr(processor, "image_processor")
    messages: list[dict[str, Any]] = []
    for role, text in turns:
        parts: list[dict[str, str]] = [{"type": "text", "text": text}]
        if role == "user" and num_images:
            parts = [{"type": "image"}] * num_images + parts
            num_images = 0
        messages.append({"role": role, "content": parts if is_processor else text})
    switch = {"enable_thinking": True} if thinking else {}
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **switch)


def _upstream_ids(processor: Any, turns: Sequence[tuple[str, str]], images: list[Any], thinking: bool) -> list[int]:
    tokenizer = getattr(processor, "tokenizer", processor)
    text = _upstream_text(processor, turns, len(images), thinking)
    # As apply_chat_template(tokenize=True) does: a bos token that the text has is not added again.
    special = not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    if not images:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])
    # With tensors: LLaVA-OneVision's processor fails without on transformers 4.
    inputs = processor(text=[text], images=[images], add_special_tokens=special, return_tensors="pt")
    return inputs["input_ids"][0].tolist()


def _template_ids(template: Any, processor: Any, turns: Sequence[tuple[str, str]], images: list[Any]) -> list[int]:
    tokenizer = getattr(processor, "tokenizer", processor)
    system = next((text for role, text in turns if role == "system"), "")
    messages = [{"role": role, "content": text} for role, text in turns if role != "system"]
    if images:
        messages[0]["content"] = "<image>" * len(images) + messages[0]["content"]
    messages.append({"role": "assistant", "content": ""})
    plugin = template.mm_plugin
    if hasattr(processor, "image_processor"):
        messages = plugin.process_messages(messages, images, [], [], processor)
    elif hasattr(plugin, "arrange"):
        messages = [{**m, "content": plugin.arrange(m["content"])} if m["role"] == "user" else m for m in messages]
    original, template.default_system = template.default_system, ""
    try:
        ids, _ = template.encode_oneturn(tokenizer, messages, system)
    finally:
        template.default_system = original
    if hasattr(processor, "image_processor"):
        ids, _ = plugin.process_token_ids(ids, None, images, [], [], tokenizer, processor)
    return list(ids)


def _first_difference(tokenizer: Any, expected: list[int], actual: list[int]) -> str:
    start = next(
        (i for i, (left, right) in enumerate(zip(expected, actual, strict=False)) if left != right),
        min(len(expected), len(actual)),
    )
    before = tokenizer.decode(actual[max(0, start - CONTEXT) : start])
    ours, theirs = (
        repr(tokenizer.decode(ids[start : start + CONTEXT])) if start < len(ids) else "nothing more"
        for ids in (actual, expected)
    )
    return f"after {before!r} the template writes {ours}, the model's chat template {theirs}"
