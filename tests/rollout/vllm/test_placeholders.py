from types import SimpleNamespace

import pytest
from loaded_twins import ONE_IMAGE, TEXT, TWO_IMAGES, load_twin
from rollout.vllm.fake_server import parts
from twins import TRANSFORMERS_5

from lcot_plugin.errors import ArgumentError
from lcot_plugin.rollout.vllm.placeholders import Placeholders

# transformers' and LLaMA-Factory's InternVL code call np.cumsum on tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")


NEEDS_5 = pytest.mark.skipif(not TRANSFORMERS_5, reason="transformers 4.57 lacks the family")
NAMES = {"B": "<start_of_image>", "E": "<end_of_image>"}


class FakeTokenizer:
    """Each token is a character; line breaks in a row are one."""

    vocabulary = ("B", "i", "E", "x", "\n", "\n\n", "\n\n\n", "\n\n\n\n")

    def get_vocab(self):
        return {NAMES.get(token, token): place for place, token in enumerate(self.vocabulary)}


@pytest.fixture
def placeholders():
    return Placeholders(parts().vlm, parts().tokenizer)


def test_each_run_of_image_tokens_becomes_one(placeholders):
    image = parts().image
    assert placeholders.collapsed([1, image, image, 2, image, 3], 2) == [1, image, 2, image, 3]
    assert placeholders.collapsed([1, image, image, image, 2], 1) == [1, image, 2]
    assert placeholders.collapsed([1, 2], 0) == [1, 2]


def test_images_that_touch_are_one_run(placeholders):
    image = parts().image
    assert placeholders.collapsed([1, *[image] * 8, 2], 2) == [1, image, image, 2]
    with pytest.raises(ArgumentError, match="line break between their <image> tags"):
        placeholders.collapsed([1, *[image] * 8, 2, image, image, 3], 3)


@pytest.mark.parametrize(
    ("ours", "sent"),
    [
        (["x", "\n\n", "B", "i", "i", "E", "\n\n", "x"], "xBx"),
        (["x", "\n\n\n", "B", "i", "i", "E", "\n\n\n", "x"], ["x", "\n", "B", "\n", "x"]),
        (["\n\n", "B", "i", "E", "\n\n\n\n", "B", "i", "E", "\n\n"], "BB"),
        (["x", "B", "x"], "xBx"),
    ],
)
def test_line_breaks_around_a_gemma_image_are_taken_apart(ours, sent):
    vlm = SimpleNamespace(config=SimpleNamespace(model_type="gemma3"), image_token_id=1)
    ids = FakeTokenizer.vocabulary.index
    placeholders = Placeholders(vlm, FakeTokenizer())
    assert placeholders.collapsed(list(map(ids, ours)), 1) == list(map(ids, sent))


FRAMES = {
    "internvl": ("<img>", "</img>"),
    "gemma3": ("<end_of_image>",),
    "gemma4": ("<|boi|>", "<|eoi|>"),
    "lfm2_vl": ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", "<|img_row_1_col_1|>"),
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<row_1_col_1>"),
}
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "llava", "llava_onevision", "smolvlm"]
FAMILIES += ["qwen3_5", "lfm2_vl", "gemma4"] if TRANSFORMERS_5 else []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_sends_one_token_per_image(twin, family):
    loaded = load_twin(twin(family))
    placeholders = Placeholders(loaded.vlm, loaded.tokenizer)
    opening = loaded.tokenizer.get_vocab().get("<start_of_image>") if family == "gemma3" else loaded.vlm.image_token_id
    for place, num_images in ((ONE_IMAGE, 1), (TEXT, 0), (TWO_IMAGES, 2)):
        ids = loaded.prompts[place].record.input_ids
        sent = placeholders.collapsed(ids, num_images)
        assert sent.count(opening) == num_images
        assert (sent == ids) == (num_images == 0)
        # What is not an image is as before, and nothing of an image but its token is left.
        frame = {loaded.tokenizer.get_vocab()[name] for name in FRAMES.get(family, ())}
        assert not set(sent) & frame
        assert sent[-4:] == ids[-4:]


@pytest.mark.parametrize("family", ["internvl", "smolvlm", pytest.param("lfm2_vl", marks=NEEDS_5)])
def test_tokens_of_a_frame_in_the_text_stay(twin, family):
    loaded = load_twin(twin(family))
    placeholders, vocabulary = Placeholders(loaded.vlm, loaded.tokenizer), loaded.tokenizer.get_vocab()
    edges = [vocabulary[name] for name in FRAMES[family][:2]]
    ids = loaded.prompts[TWO_IMAGES].record.input_ids
    closing = [edges[-1]] if family != "smolvlm" else []
    assert placeholders.collapsed([*closing, 5, *ids, *edges], 2) == [
        *closing,
        5,
        *placeholders.collapsed(ids, 2),
        *edges,
    ]
    with pytest.raises(ArgumentError, match="has 3 images, and the tokens around them show 2"):
        placeholders.collapsed(ids, 3)


def test_a_difference_is_told_in_words(placeholders):
    image, ids = parts().image, parts().ids
    assert placeholders.difference([1, image, 2], [1, image, 2]) is None
    assert "image 2 has 2 tokens here and 3 on the server" in placeholders.difference(
        [1, image, 2, image, image, 3], [1, image, 2, image, image, image, 3]
    )
    assert "image 1 has 2 tokens here and 0 on the server" in placeholders.difference([1, image, image], [1])
    end = ids["<|im_end|>"]
    said = placeholders.difference([1, end, 3], [1, 7])
    assert f"token 1 of 3 is '<|im_end|>' ({end}) here" in said and "which counts 2" in said
    assert "is nothing here" in placeholders.difference([1], [1, 7])
    assert "which the tokenizer lacks" in placeholders.difference([1], [10**6])


def test_a_family_without_an_image_token_is_refused():
    vlm = SimpleNamespace(config=SimpleNamespace(model_type="other"), image_token_id=None)
    placeholders = Placeholders(vlm, parts().tokenizer)
    assert placeholders.collapsed([1, 2], 0) == [1, 2]
    with pytest.raises(ArgumentError, match="names no image token"):
        placeholders.collapsed([1, 2], 1)


def test_advice_is_that_of_the_family(twin):
    tiled = load_twin(twin("internvl"))
    assert "crop_to_patches: true" in Placeholders(tiled.vlm, tiled.tokenizer).advice
    assert "image_max_pixels" in Placeholders(parts().vlm, parts().tokenizer).advice
