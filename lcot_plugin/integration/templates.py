r"""Seam: `llamafactory.data.template`. Registers a long chain-of-thought template `<family>_lcot` for every family.

In:  LLaMA-Factory's own templates.
Out: templates derived from them that write what the model's own chat template writes (`template_check.differences`
     compares the two at run time), with the system prompt of the target format.

What every derived template changes:

- It is no ReasoningTemplate: that class puts an empty thought, with loss, before responses without one, and cuts
  thoughts out of texts that it takes for earlier turns.
- `default_system` is the system prompt of `cot_format`, set when the template is asked for and on a copy; a
  `default_system` in the YAML, also an empty one, takes its place.
- Line breaks around `<image>` are the chat template's and not the data set's (`plugins.py`).

What LLaMA-Factory's template has otherwise than the model's, family by family, stands in `FAMILIES`.

Where the chat template opens the thought in the generation prompt (`opens_thought`), the opening belongs to the prompt
and has no loss: a completion starts inside the thought. For a response `<think>\nA\n</think>\n\nB` the SFT tokens are

    ...<|im_start|>assistant\n<think>\n  |  A\n</think>\n\nB<|im_end|>\n
                 prompt, no loss          |           loss

and a response without a thought gets an empty one, on the prompt's side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from lcot_plugin.errors import ArgumentError

SUFFIX = "_lcot"
DEFAULT_FORMAT = "think_boxed"


@dataclass(frozen=True)
class Family:
    """How a template is derived, and which facts about the model's chat template decided it."""

    base: str
    """LLaMA-Factory's template."""
    why: str
    """What the chat template has otherwise than the base, besides a default system prompt of the base."""
    slots: Mapping[str, list[Any]] = field(default_factory=dict)
    """Formatter -> the slots that take the place of the base's."""
    plugin: str | None = None
    """Multimodal plugin in place of the base's."""
    thought_words: tuple[str, str] | None = None
    """What opens and closes a thought in the family's own format, where the base has it wrong."""
    opens_thought: str = ""
    """What the generation prompt ends with after the assistant's header."""
    native_system: str = ""
    """What starts the system turn where `cot_format: native` asks for the family's own thinking mode."""


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        "qwen2_vl",
        "the same (also Qwen2.5-VL); with no system prompt at all the model's adds `You are a helpful assistant.`",
    ),
    "qwen3_vl": Family("qwen3_vl_nothink", "the same: the Instruct models have no thinking mode"),
    "qwen3_vl_thinking": Family("qwen3_vl", "opens the thought", opens_thought="<think>\n"),
    "qwen3_5": Family(
        "qwen3_5",
        "opens the thought in its thinking mode; without it, the default of the smallest, it writes an empty one",
        opens_thought="<think>\n",
    ),
    "intern_vl": Family(
        "intern_vl",
        "of the Hugging Face form (InternVL3-1B-hf...): no bos token, a line break after each image",
        slots={"format_prefix": []},
        plugin="intern_vl_lcot",
    ),
    "gemma3": Family(
        "gemma3", "trims every piece of text; the system prompt starts the first user turn", plugin="gemma3_lcot"
    ),
    "gemma3n": Family("gemma3n", "as gemma3", plugin="gemma3n_lcot"),
    "gemma4": Family(
        "gemma4",
        "`<|think|>` only in thinking mode, a line break before the end of a thought, trims every piece of text; the "
        "models above E4B also write an empty thought in the generation prompt of the other mode, these do not",
        slots={"format_system": ["<|turn>system\n{{content}}<turn|>\n"]},
        plugin="gemma4_lcot",
        thought_words=("<|channel>thought\n", "\n<channel|>"),
        native_system="<|think|>",
    ),
    "smolvlm": Family("smolvlm", "LLaMA-Factory has none (SmolVLM, SmolVLM2, Idefics3)"),
    "llava_onevision": Family("llava_onevision", "LLaMA-Factory has none"),
    "minicpm_v": Family("minicpm_v", "a line break after each image", plugin="minicpm_v_lcot"),
    "minicpm_v_4_6": Family("minicpm_v_4_6", "a line break after each image", plugin="minicpm_v_4_6_lcot"),
    "lfm2_vl": Family(
        "lfm2_vl",
        "starts with the bos token; delimiters, tiles and thumbnail of an image",
        slots={"format_prefix": [{"bos_token"}]},
        plugin="lfm2_vl_tiles",
    ),
    "paligemma": Family(
        "paligemma",
        "has none: the processor writes images, bos, text, line break",
        slots={"format_system": ["{{content}}\n"]},
    ),
    "llava": Family(
        "llava",
        "of LLaVA-1.5: starts with the bos token, a line break after each image; it ends no answer, the original code "
        "ends one with eos, and so does the base",
        slots={"format_prefix": [{"bos_token"}]},
        plugin="llava_lcot",
    ),
}
"""Template name without its suffix -> how it is derived."""


class LongCotEncoding:
    """Mixin over LLaMA-Factory's Template: what opens a thought, and a thinking mode, that the prompt must hold."""

    opens_thought: str
    system_opening: str
    default_system: str
    thought_words: tuple[str, str]

    def _encode(
        self, tokenizer: Any, messages: Sequence[Mapping[str, str]], system: str | None, tools: str | None
    ) -> list[list[int]]:
        """One list of ids per turn."""
        if self.system_opening:
            system = self.system_opening + (system or self.default_system)
        if not self.opens_thought:
            return super()._encode(tokenizer, messages, system, tools)  # type: ignore[misc]
        openings: dict[int, str] = {}
        turns = []
        for index, turn in enumerate(messages):
            content = turn["content"]
            if turn["role"] == "assistant":
                openings[index], content = self._split_opening(content, last=index == len(messages) - 1)
            turns.append({**turn, "content": content})
        encoded = super()._encode(tokenizer, turns, system, tools)  # type: ignore[misc]
        for index, opening in openings.items():
            encoded[index - 1] += tokenizer.encode(opening, add_special_tokens=False)
        return encoded

    def _split_opening(self, content: str, last: bool) -> tuple[str, str]:
        """What of a response belongs to the prompt, and the rest."""
        opening, closing = (word.strip() for word in self.thought_words)
        text = content.lstrip()
        if text.startswith(opening):
            return self.opens_thought, text.removeprefix(opening).lstrip("\n")
        if not text or closing in text:
            return self.opens_thought, text
        # As the chat templates do: an earlier turn without a thought stays as it is.
        return ("".join(self.thought_words) if last else ""), content


def apply(module: ModuleType) -> None:
    """Registers the templates, and has `get_template_and_fix_tokenizer` give them their system prompt."""
    if f"qwen2_vl{SUFFIX}" in module.TEMPLATES:
        return

    @dataclass
    class LongCotTemplate(LongCotEncoding, module.Template):  # type: ignore[name-defined]
        opens_thought: str = ""
        system_opening: str = ""

    # Where processes that unpickle a template look for its class.
    LongCotTemplate.__module__, LongCotTemplate.__qualname__ = module.__name__, "LongCotTemplate"
    module.LongCotTemplate = LongCotTemplate
    register_bases(module)
    for name, family in FAMILIES.items():
        derive(module, name, family)
    module.get_template_and_fix_tokenizer = with_system_prompt(module, module.get_template_and_fix_tokenizer)


def register_bases(module: ModuleType) -> None:
    """Templates of families that LLaMA-Factory lacks."""
    text, empty = module.StringFormatter, module.EmptyFormatter
    if "smolvlm" not in module.TEMPLATES:
        module.register_template(
            name="smolvlm",
            # The plugin puts a blank before a turn that starts with text; the answer's own is its first token's.
            format_user=text(slots=["User:{{content}}<end_of_utterance>\nAssistant:"]),
            format_assistant=text(slots=[" {{content}}<end_of_utterance>\n"]),
            format_system=text(slots=["System: {{content}}<end_of_utterance>\n"]),
            format_prefix=empty(slots=["<|im_start|>"]),
            stop_words=["<end_of_utterance>"],
            replace_eos=True,
            mm_plugin=module.get_mm_plugin(name="smolvlm", image_token="<image>"),
        )
    if "llava_onevision" not in module.TEMPLATES:
        module.register_template(
            name="llava_onevision",
            # The plugin ends the line that the header and the images share.
            format_user=text(slots=["<|im_start|>user {{content}}<|im_end|><|im_start|>assistant\n"]),
            format_assistant=text(slots=["{{content}}<|im_end|>"]),
            format_system=text(slots=["<|im_start|>system \n{{content}}<|im_end|>"]),
            stop_words=["<|im_end|>"],
            replace_eos=True,
            mm_plugin=module.get_mm_plugin(name="llava_onevision", image_token="<image>"),
        )


def derive(module: ModuleType, name: str, family: Family) -> None:
    """Registers `<name>_lcot`; the base's formatters are copied, so that what upstream mends in them arrives."""
    base = module.TEMPLATES[family.base]
    values = {item.name: deepcopy(getattr(base, item.name)) for item in fields(module.Template)}
    values |= {"default_system": "", "enable_thinking": True}
    for formatter, slots in family.slots.items():
        values[formatter] = type(values[formatter])(slots=list(slots))
    if family.plugin is not None:
        settings = {item.name: getattr(base.mm_plugin, item.name) for item in fields(base.mm_plugin)}
        values["mm_plugin"] = module.get_mm_plugin(name=family.plugin, **settings)
    if family.thought_words is not None:
        values["thought_words"] = family.thought_words
    # Llama2Template is the one that puts the system prompt into the first user turn.
    in_user_turn = isinstance(base, module.Llama2Template)
    template_class = type(base) if in_user_turn else module.LongCotTemplate
    module.register_template(name=name + SUFFIX, **values, template_class=template_class)
    if not in_user_turn:
        module.TEMPLATES[name + SUFFIX].opens_thought = family.opens_thought


def with_system_prompt(module: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    """`original` for all templates but ours, which come as a copy with the system prompt of `cot_format`.

    LLaMA-Factory writes `default_system` and the tool format into its registered template, from where they would reach
    the next run in the same process.
    """

    @functools.wraps(original)
    def get_template_and_fix_tokenizer(tokenizer: Any, data_args: Any) -> Any:
        name = data_args.template
        if name is not None and name not in module.TEMPLATES and (near := get_close_matches(name, module.TEMPLATES)):
            raise ArgumentError(f"template: there is no {name}: did you mean {' or '.join(near)}?")
        if name not in module.TEMPLATES or not name.endswith(SUFFIX):
            return original(tokenizer, data_args)
        registered = module.TEMPLATES[name]
        template = deepcopy(registered)
        cot_format = getattr(data_args, "cot_format", DEFAULT_FORMAT)
        family = FAMILIES[name.removesuffix(SUFFIX)]
        if cot_format == "native" and family.native_system:
            template.system_opening = family.native_system
        if data_args.default_system is None:
            template.default_system = system_prompt(cot_format, family)
        module.TEMPLATES[name] = template
        try:
            return original(tokenizer, data_args)
        finally:
            module.TEMPLATES[name] = registered

    return get_template_and_fix_tokenizer


def system_prompt(cot_format: str, family: Family) -> str:
    """That of the target format; `native` needs one only where the family does not reason by itself."""
    from lcot_plugin.data.targets import STEP_BY_STEP, TARGETS

    reasons = bool(family.opens_thought or family.native_system)
    return TARGETS[cot_format].system_prompt or ("" if reasons else STEP_BY_STEP)
