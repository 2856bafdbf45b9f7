"""The long chain-of-thought templates: what each writes, with which system prompt, and what of it has loss."""

from __future__ import annotations

import copy
import pickle
import re
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoProcessor
from twins import TWIN_TEMPLATES

from lcot_plugin.data.targets import STEP_BY_STEP, TARGETS
from lcot_plugin.integration import template_check, templates
from lcot_plugin.integration.templates import FAMILIES

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

SYSTEM, QUESTION, SECOND = "Be brief.", "How many?", "And now?"
RESPONSE = "<think>\nOne,\ntwo.\n</think>\n\nTwo."


class TextTokenizer:
    """A token is the piece of text that it was encoded from, so that a rendering can be read and its parts be told."""

    bos_token_id, eos_token_id = "<bos>", "</s>"

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        assert not add_special_tokens
        return [text]


def template(name: str) -> Any:
    from llamafactory.data.template import TEMPLATES

    return copy.deepcopy(TEMPLATES[f"{name}_lcot"])


def conversation(name: str, *contents: str) -> list[dict[str, str]]:
    """User and assistant in turn, arranged by the template's plugin, the images not expanded."""
    arrange = getattr(template(name).mm_plugin, "arrange", lambda content: content)
    return [
        {"role": "assistant", "content": content} if i % 2 else {"role": "user", "content": arrange(content)}
        for i, content in enumerate(contents)
    ]


def written(name: str, *contents: str, system: str = SYSTEM) -> list[str]:
    """[prompt, response, prompt, response...] as text."""
    encoded = template(name)._encode(TextTokenizer(), conversation(name, *contents), system, None)
    return ["".join(turn) for turn in encoded]


# What the models' own chat templates write for a system prompt and a question with an image, up to the answer.
PROMPTS = {
    "qwen2_vl": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>How many?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "qwen3_vl": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>How many?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "qwen3_vl_thinking": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>How many?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n",
    "qwen3_5": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>How many?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n",
    "intern_vl": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nHow many?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "gemma3": "<bos><start_of_turn>user\nBe brief.\n\n<image>How many?<end_of_turn>\n<start_of_turn>model\n",
    "gemma3n": "<bos><start_of_turn>user\nBe brief.\n\n<image>How many?<end_of_turn>\n<start_of_turn>model\n",
    "gemma4": "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\n<image>How many?<turn|>\n<|turn>model\n",
    "smolvlm": "<|im_start|>System: Be brief.<end_of_utterance>\nUser:<image>How many?<end_of_utterance>\nAssistant:",
    "llava_onevision": "<|im_start|>system \nBe brief.<|im_end|><|im_start|>user <image>\nHow many?<|im_end|>"
    "<|im_start|>assistant\n",
    "minicpm_v": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nHow many?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "minicpm_v_4_6": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nHow many?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "lfm2_vl": "<bos><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>How many?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "paligemma": "<bos>Be brief.\n<image>How many?\n",
    # The blank before `USER` comes with its first token: SentencePiece puts one before every piece it encodes.
    "llava": "<bos>Be brief.USER: <image>\nHow many? ASSISTANT:",
}
ANSWER_ENDS = {
    "gemma3": "<end_of_turn>\n",
    "gemma3n": "<end_of_turn>\n",
    "gemma4": "<turn|>\n",
    "smolvlm": "<end_of_utterance>\n",
    "llava_onevision": "<|im_end|>",
    "paligemma": "</s>",
    "llava": "</s>",
}
OPENING = sorted(name for name, family in FAMILIES.items() if family.opens_thought)


def test_every_family_is_tested() -> None:
    assert PROMPTS.keys() == FAMILIES.keys()
    assert OPENING == ["qwen3_5", "qwen3_vl_thinking"]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_those_of_the_chat_template(name: str) -> None:
    assert written(name, f"<image>{QUESTION}", "")[0] == PROMPTS[name]


ARRANGING = ("gemma3", "gemma3n", "gemma4", "intern_vl", "llava", "llava_onevision", "minicpm_v", "minicpm_v_4_6")


@pytest.mark.parametrize("name", ARRANGING)
def test_a_line_break_after_the_image_is_the_chat_templates_and_not_the_data_sets(name: str) -> None:
    assert written(name, f"<image>\n{QUESTION}", "")[0] == PROMPTS[name]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_and_response_are_the_conversation(name: str) -> None:
    """SFT's tokens with loss begin where the prompt of stage grpo ends, whatever the prompt opens."""
    prompt, response = written(name, f"<image>{QUESTION}", RESPONSE)
    assert prompt == PROMPTS[name]
    end = ANSWER_ENDS.get(name, "<|im_end|>\n")
    expected = RESPONSE.removeprefix("<think>\n") if name in OPENING else RESPONSE
    assert response == (" " if name == "smolvlm" else "") + expected + end


@pytest.mark.parametrize("name", PROMPTS)
def test_no_empty_thought_has_loss_and_no_thought_is_removed(name: str) -> None:
    """LLaMA-Factory's reasoning templates do both."""
    tokenizer = TextTokenizer()
    (prompt, response), (second_prompt, second) = template(name).encode_multiturn(
        tokenizer, conversation(name, QUESTION, RESPONSE, SECOND, "Two."), SYSTEM, None, False
    )
    assert "two." in "".join(response)
    assert "".join(second).strip().startswith("Two.")
    empty = "<think>\n\n</think>\n\n"
    assert "".join(second_prompt).endswith(empty) is (name in OPENING), "only on the prompt's side, without loss"
    assert empty not in "".join(prompt + response + second)


@pytest.mark.parametrize("name", OPENING)
@pytest.mark.parametrize(
    ("content", "prompt_end", "response"),
    [
        ("", "<think>\n", ""),
        (RESPONSE, "<think>\n", "One,\ntwo.\n</think>\n\nTwo."),
        ("<think>One.</think>Two.", "<think>\n", "One.</think>Two."),
        ("One.\n</think>\n\nTwo.", "<think>\n", "One.\n</think>\n\nTwo."),
        ("Two.", "<think>\n\n</think>\n\n", "Two."),
    ],
)
def test_the_opening_of_a_thought_belongs_to_the_prompt(
    name: str, content: str, prompt_end: str, response: str
) -> None:
    prompt, answer = template(name).encode_oneturn(TextTokenizer(), conversation(name, QUESTION, content), "")
    assert "".join(prompt).endswith(f"assistant\n{prompt_end}")
    assert "".join(answer) == f"{response}<|im_end|>\n"


@pytest.mark.parametrize("name", OPENING)
def test_an_earlier_answer_without_a_thought_stays_as_it_is(name: str) -> None:
    turns = written(name, QUESTION, "Two.", SECOND, "")
    assert "<think>" not in turns[0] + turns[1] and turns[2].endswith("<think>\n")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen3_vl", "qwen3_vl"),
        ("qwen3_vl", "qwen3_vl_thinking"),
        ("internvl", "intern_vl"),
        ("gemma3", "gemma3"),
        ("smolvlm", "smolvlm"),
        ("llava_onevision", "llava_onevision"),
    ],
)
def test_the_parts_have_the_tokens_of_the_whole(family: str, name: str, twin: Any) -> None:
    """A conversation is encoded in pieces; a tokenizer that sees it whole must cut it in the same way."""
    tokenizer = AutoProcessor.from_pretrained(twin(family)).tokenizer
    turns = conversation(name, QUESTION, RESPONSE, SECOND, RESPONSE)
    pieces = template(name)._encode(tokenizer, turns, SYSTEM, None)
    text = "".join(written(name, QUESTION, RESPONSE, SECOND, RESPONSE)).replace("<bos>", tokenizer.bos_token or "")
    assert [token for piece in pieces for token in piece] == tokenizer.encode(text, add_special_tokens=False)


# --- the system prompt ------------------------------------------------------------------------------------------------


@pytest.fixture
def processor(twin: Any) -> Any:
    return AutoProcessor.from_pretrained(twin("qwen3_vl"))


def ask(processor: Any, name: str, **settings: Any) -> Any:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    arguments = SimpleNamespace(**{**vars(DataArguments(template=f"{name}_lcot")), **settings})
    return get_template_and_fix_tokenizer(processor.tokenizer, arguments)


@pytest.mark.parametrize("cot_format", ["think_boxed", "think_answer"])
def test_the_target_format_brings_its_system_prompt(processor: Any, cot_format: str) -> None:
    assert ask(processor, "qwen2_vl", cot_format=cot_format).default_system == TARGETS[cot_format].system_prompt


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_vl_thinking", "gemma4", "qwen2_vl", "smolvlm"])
def test_a_family_that_reasons_by_itself_needs_no_system_prompt(processor: Any, name: str) -> None:
    expected = STEP_BY_STEP if name in ("qwen2_vl", "smolvlm") else ""
    assert ask(processor, name, cot_format="native").default_system == expected


def test_a_system_prompt_of_the_user_takes_its_place(processor: Any) -> None:
    assert ask(processor, "qwen2_vl", cot_format="think_boxed", default_system="Mine.").default_system == "Mine."
    assert ask(processor, "qwen2_vl", cot_format="think_boxed", default_system="").default_system == ""


def test_arguments_without_the_key_mean_the_default_format(processor: Any) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer

    arguments = SimpleNamespace(template="qwen2_vl_lcot", train_on_prompt=False, tool_format=None, default_system=None)
    asked = get_template_and_fix_tokenizer(processor.tokenizer, arguments)
    assert asked.default_system == TARGETS["think_boxed"].system_prompt


def test_nothing_leaks_into_the_registered_template(processor: Any) -> None:
    from llamafactory.data.template import TEMPLATES

    before = copy.deepcopy(TEMPLATES["qwen2_vl_lcot"])
    ask(processor, "qwen2_vl", cot_format="think_answer", default_system="Mine.", tool_format="qwen")
    assert TEMPLATES["qwen2_vl_lcot"] == before
    with pytest.raises(ValueError, match="train_on_prompt"):
        TEMPLATES["qwen2_vl_lcot"].efficient_eos = True
        try:
            ask(processor, "qwen2_vl", train_on_prompt=True)
        finally:
            TEMPLATES["qwen2_vl_lcot"].efficient_eos = False
    assert TEMPLATES["qwen2_vl_lcot"] == before


def test_other_templates_come_as_they_did(processor: Any) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.template import TEMPLATES
    from llamafactory.hparams import DataArguments

    asked = get_template_and_fix_tokenizer(processor.tokenizer, DataArguments(template="qwen2_vl"))
    assert asked is TEMPLATES["qwen2_vl"] and asked.default_system == "You are a helpful assistant."
    with pytest.raises(ValueError, match="there is no missing_lcot: did you mean"):
        get_template_and_fix_tokenizer(processor.tokenizer, DataArguments(template="missing_lcot"))


def test_gemma4_thinks_natively_only_where_asked(processor: Any) -> None:
    native = ask(processor, "gemma4", cot_format="native", default_system="")
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Two."}]
    prompts = {system: "".join(native._encode(TextTokenizer(), turns, system, None)[0]) for system in ("", SYSTEM)}
    assert prompts[""].startswith("<bos><|turn>system\n<|think|><turn|>\n<|turn>user\n")
    assert prompts[SYSTEM].startswith("<bos><|turn>system\n<|think|>Be brief.<turn|>\n<|turn>user\n")
    assert native.thought_words == ("<|channel>thought\n", "\n<channel|>")
    boxed = ask(processor, "gemma4", cot_format="think_boxed")
    assert "<|think|>" not in "".join(boxed._encode(TextTokenizer(), turns, SYSTEM, None)[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_templates_reach_worker_processes(name: str) -> None:
    assert pickle.loads(pickle.dumps(template(name))) == template(name)


def test_the_seam_applies_once() -> None:
    from llamafactory.data import template as module

    registered, function = dict(module.TEMPLATES), module.get_template_and_fix_tokenizer
    templates.apply(module)
    assert registered == module.TEMPLATES and module.get_template_and_fix_tokenizer is function


# --- the check against the model's own chat template ------------------------------------------------------------------

SAME = {
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen3_vl",
    "internvl": "intern_vl",
    "smolvlm": "smolvlm",
    "llava_onevision": "llava_onevision",
}
THINKING_CHAT = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{{- '<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)


@pytest.mark.parametrize("family", SAME)
def test_a_chat_template_that_agrees(family: str, twin: Any) -> None:
    processor = AutoProcessor.from_pretrained(twin(family))
    assert template_check.differences(template(SAME[family]), processor) is None
    assert template_check.differences(template(SAME[family]), processor.tokenizer) is None


def test_an_agreeing_thinking_mode(processor: Any) -> None:
    processor.chat_template = THINKING_CHAT
    assert template_check.differences(template("qwen3_5"), processor) is None
    found = template_check.differences(template("qwen3_vl"), processor)
    assert found is not None and "writes nothing more, the model's chat template '<think>" in found


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("<|im_start|>assistant\\n", "<|im_start|>assistant: ", r"a question: after .*'\\n'.* ': '"),
        ("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>", "a question with an image: after"),
        ("'<|im_end|>\\n' }}{%- endfor", "'<|im_end|>' }}{%- endfor", "a question: after"),
    ],
)
def test_a_chat_template_that_differs(processor: Any, old: str, new: str, found: str) -> None:
    assert old in processor.chat_template
    processor.chat_template = processor.chat_template.replace(old, new)
    difference = template_check.differences(template("qwen3_vl"), processor)
    assert difference is not None
    assert re.search(found, difference), difference


def test_an_answer_in_the_history_that_differs(processor: Any) -> None:
    ending = "{{- '<|im_end|>\\n' }}"
    assert ending in processor.chat_template
    processor.chat_template = processor.chat_template.replace(
        ending, "{{- '<|im_end|>' if message['role'] == 'assistant' else '<|im_end|>\\n' }}"
    )
    difference = template_check.differences(template("qwen3_vl"), processor)
    assert difference is not None and difference.startswith("a second question: ")


def test_a_model_without_a_chat_template_has_nothing_to_compare(processor: Any) -> None:
    processor.chat_template = None
    assert template_check.differences(template("qwen3_vl"), processor) is None


def test_a_chat_template_that_refuses_a_system_prompt_is_compared_without(processor: Any) -> None:
    refusal = "{%- if messages[0]['role'] == 'system' %}{{- raise_exception('no system') }}{%- endif %}"
    processor.chat_template = refusal + processor.chat_template
    assert template_check.differences(template("qwen3_vl"), processor) is None
    processor.chat_template = "{{- raise_exception('broken') }}"
    assert "broken" in (template_check.differences(template("qwen3_vl"), processor) or "")


def test_the_check_leaves_the_template_as_it_was(processor: Any) -> None:
    asked = template("qwen3_vl")
    asked.default_system = "Mine."
    before = copy.deepcopy(asked)
    template_check.differences(asked, processor)
    assert asked == before


def test_twins_name_registered_templates() -> None:
    from llamafactory.data.template import TEMPLATES

    assert set(TWIN_TEMPLATES.values()) <= TEMPLATES.keys()
