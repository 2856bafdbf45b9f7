"""Outputs from headers against the real image processors' outputs; what is not known is not counted."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from image_processors import FAMILIES, Case, encode, image_processor, random_sizes
from PIL import Image

from lcot_plugin.render.counting import FAMILIES as COUNTED
from lcot_plugin.render.counting import CountingImageProcessor, counting_image_processor
from lcot_plugin.render.headers import HeaderImage

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

SIZES = [(640, 480), (300, 900), (1100, 300)]
SHAPES_ONLY = "pixel_values"


def as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value


def outputs(case: Case, sizes: list[tuple[int, int]], **settings: Any) -> tuple[Any, Any]:
    counting = counting_image_processor(case.image_processor)
    assert counting is not None
    images = [Image.new("RGB", size) for size in sizes]
    return (
        case.image_processor(images, return_tensors="pt", **settings),
        counting([HeaderImage(size) for size in sizes], return_tensors="pt", **settings),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_returned_equals_the_real_outputs(family: str) -> None:
    settings = {"return_row_col_info": True} if "SmolVLM" in family else {}
    real, counted = outputs(FAMILIES[family](), SIZES, **settings)
    compared = [key for key in counted if key != SHAPES_ONLY]
    assert compared or SHAPES_ONLY in counted
    for key in compared:
        assert as_list(counted[key]) == as_list(real[key]), key
    if SHAPES_ONLY in counted and counted[SHAPES_ONLY].dim() > 2:
        assert counted[SHAPES_ONLY].shape[-3:] == real[SHAPES_ONLY].shape[-3:]


def test_every_known_class_is_compared() -> None:
    names = {
        type(build().image_processor).__name__.removesuffix("Fast").removesuffix("Pil") for build in FAMILIES.values()
    }
    assert names == {name for name in COUNTED if hasattr(transformers, name) or hasattr(transformers, f"{name}Fast")}


def test_images_in_groups_are_counted_in_groups() -> None:
    case = FAMILIES["SmolVLM2"]()
    groups = [[(640, 480), (100, 900)], [(300, 300)]]
    settings = {"return_tensors": "pt", "return_row_col_info": True}
    real = case.image_processor([[Image.new("RGB", size) for size in group] for group in groups], **settings)
    counting = counting_image_processor(case.image_processor)
    counted = counting([[HeaderImage(size) for size in group] for group in groups], **settings)
    assert (counted["rows"], counted["cols"]) == (real["rows"], real["cols"])


def test_settings_of_a_call_come_before_the_image_processors_own() -> None:
    case = FAMILIES["InternVL"]()
    settings = {"crop_to_patches": True, "min_patches": 1, "max_patches": 5}
    real, counted = outputs(case, SIZES, **settings)
    assert counted["num_patches"].tolist() == real["num_patches"].tolist() != [1, 1, 1]


def test_pixels_have_a_shape_and_no_storage() -> None:
    _, counted = outputs(FAMILIES["LLaVA 1.5"](), [(640, 480)])
    assert counted["pixel_values"].shape == (1, 3, 336, 336)
    assert counted["pixel_values"].untyped_storage().nbytes() == 4
    assert counted["pixel_values"][0].numpy().shape == (3, 336, 336)


def test_real_images_go_to_the_real_image_processor() -> None:
    case = FAMILIES["Qwen3-VL, Qwen3.5"]()
    counted = counting_image_processor(case.image_processor)([Image.new("RGB", (256, 256))], return_tensors="pt")
    assert counted["pixel_values"].shape == (256, 3 * 2 * 16 * 16)


def test_attributes_are_the_real_image_processors() -> None:
    case = FAMILIES["Qwen3-VL, Qwen3.5"]()
    counting = counting_image_processor(case.image_processor)
    assert (counting.merge_size, counting.patch_size) == (2, 16)
    assert not hasattr(counting, "no_such_setting")
    copied = pickle.loads(pickle.dumps(counting))
    image = HeaderImage((640, 480))
    assert copied([image])["image_grid_thw"].tolist() == counting([image])["image_grid_thw"].tolist()


class Qwen2VLImageProcessor:
    """A class of a model's own repository that has a known name; Keye-VL's `SiglipImageProcessor` is such a one."""

    do_resize = True


@pytest.mark.parametrize(
    "unknown",
    [
        None,
        object(),
        Qwen2VLImageProcessor(),
        image_processor("Qwen2VLImageProcessor", do_resize=False),
        image_processor("CLIPImageProcessor", do_center_crop=False),
        image_processor("SiglipImageProcessor", size={"shortest_edge": 224}),
        image_processor("Lfm2VlImageProcessor", do_pad=False),
        image_processor("SmolVLMImageProcessor", size={"height": 512, "width": 512}),
        image_processor("PixtralImageProcessor", do_center_crop=True, crop_size={"height": 64, "width": 64}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_is_not_counted(unknown: Any) -> None:
    assert counting_image_processor(unknown) is None


def test_a_subclass_is_not_known() -> None:
    real = image_processor("Qwen2VLImageProcessor")
    cls = type("MyImageProcessor", (type(real),), {})
    assert counting_image_processor(cls()) is None


def test_a_wrong_count_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of the other tests fails where the arithmetic is off by one patch size."""
    case = FAMILIES["Qwen2-VL, Qwen2.5-VL"]()
    contents = [encode(size) for size in random_sizes(20, seed=1, max_pixels=100_000)]
    assert all(real == counted for real, counted in (case.texts([image]) for image in contents))
    counting = CountingImageProcessor(image_processor("Qwen2VLImageProcessor", patch_size=16))
    wrong = Case(case.plugin, case.processor)
    processor = type(case.processor)(**{**vars(case.processor), "image_processor": counting})
    assert any(real != counted for real, counted in (wrong.texts([image], processor) for image in contents))
