"""LLaMA-Factory's prompts from headers against its prompts from pixels."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_processors import FAMILIES, MESSAGES, REFUSED, Case, encode, random_sizes
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import ModelArguments
from llamafactory.model import load_tokenizer
from PIL import Image
from twins import TWIN_TEMPLATES

from lcot_plugin.integration.token_counting import without_pixels
from lcot_plugin.render.headers import read_header

# LLaMA-Factory sums a tensor with NumPy when it counts InternVL's patches.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

SIZES = random_sizes(60, seed=0, max_pixels=150_000)
SLOW_SIDE = 250
"""Pixels: LLaVA resizes the shorter side to 336, and an image of 1 x 2000 to 336 x 672000."""


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_from_headers_equal_prompts_from_pixels(family: str) -> None:
    case = FAMILIES[family]()
    sizes = [size for size in SIZES if "LLaVA" not in family or max(size) / min(size) < SLOW_SIDE]
    differences = {}
    for size in sizes:
        real, counted = case.texts([encode(size)])
        if real != counted:
            differences[size] = (real, counted)
    assert not differences
    assert len(sizes) > 50


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pixels", [(64 * 64, 32 * 32), (200_000, 100_000), (10_000_000, 1)])
def test_pixel_budgets_are_kept(family: str, pixels: tuple[int, int]) -> None:
    case = FAMILIES[family]()
    case.processor.image_max_pixels, case.processor.image_min_pixels = pixels
    for size in [(500, 300), (90, 600), (100, 100)]:
        real, counted = case.texts([encode(size)])
        assert real == counted


@pytest.mark.parametrize(
    "family", ["Qwen3-VL, Qwen3.5", "InternVL, crop_to_patches", "SmolVLM2", "LFM2-VL", "LFM2-VL, tiles", "LLaVA-NeXT"]
)
def test_several_images_keep_their_order(family: str) -> None:
    case = FAMILIES[family]()
    real, counted = case.texts([encode(size) for size in [(600, 300), (100, 100), (300, 700), (100, 100)]])
    assert real == counted != REFUSED


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_counts_alike(mode: str) -> None:
    case = FAMILIES["Qwen3-VL, Qwen3.5"]()
    real, counted = case.texts([encode((300, 200), "TIFF" if mode == "CMYK" else "PNG", mode)])
    assert real == counted != REFUSED


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([name for name in FAMILIES if "LLaVA" not in name]),
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.integers(1_000, 600_000),
)
def test_any_size_under_any_budget_counts_alike(family: str, size: tuple[int, int], max_pixels: int) -> None:
    case = built(family)
    case.processor.image_max_pixels = max_pixels
    real, counted = case.texts([encode(size)])
    assert real == counted


CASES: dict[str, Case] = {}


def built(family: str) -> Case:
    return CASES.setdefault(family, FAMILIES[family]())


def test_an_image_that_llamafactory_refuses_is_refused() -> None:
    """768 * 768 pixels of a line are resized to 0.9 of them, which is no pixel wide."""
    case = FAMILIES["Qwen3-VL, Qwen3.5"]()
    assert case.texts([encode((1, 700_000))]) == (REFUSED, REFUSED)


def test_no_image_processor_or_an_unknown_one_is_left_to_decoding() -> None:
    case = FAMILIES["PaliGemma"]()
    case.processor.image_processor = None
    assert without_pixels(case.processor) is None
    case.processor.image_processor = object()
    assert without_pixels(case.processor) is None
    assert without_pixels(None) is None


@pytest.mark.parametrize("family", TWIN_TEMPLATES)
def test_a_real_processor_is_copied_and_can_be_sent_to_workers(
    family: str, twin: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments = ModelArguments(model_name_or_path=str(twin(family)))
    processor = load_tokenizer(arguments)["processor"]
    plugin = TEMPLATES[TWIN_TEMPLATES[family]].mm_plugin
    before = processor.image_processor
    counting = pickle.loads(pickle.dumps(without_pixels(processor)))
    assert processor.image_processor is before
    assert type(counting) is type(processor)
    for size in [(120, 60), (64, 200), (56, 56)]:
        path = tmp_path / "a.png"
        Image.new("RGB", size).save(path)
        real = plugin.process_messages(MESSAGES, [str(path)], [], [], processor)
        counted = plugin.process_messages(MESSAGES, [read_header(str(path))], [], [], counting)
        assert counted == real
