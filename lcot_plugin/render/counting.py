"""Image processors that count instead of computing pixels.

In: an image processor of transformers. Out: a stand-in that, called with HeaderImages, returns those outputs from
which prompts are written (grids, crops, rows, sizes) and none of the pixels. Consumer: integration.token_counting.

The arithmetic is transformers' own wherever it can be called without pixels: functions of the image processor's module
(`smart_resize`...), its methods, or those methods on a tensor without storage (device `meta`). What remains here is
noted. The stand-in decides from the class: 4.57 calls `X` (NumPy) and `XFast` (torch) what 5 calls `XPil` and `X`.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ChannelDimension, get_image_size, infer_channel_dimension_format

from lcot_plugin.render.headers import HeaderImage

Size = tuple[int, int]
"""Height and width in pixels, transformers' order; Pillow's is width and height."""


@dataclass(frozen=True)
class Settings:
    """An image processor's settings, those of one call before its own."""

    processor: Any
    call: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        value = self.call.get(name)
        return getattr(self.processor, name, None) if value is None else value

    def edge(self, name: str, key: str) -> int | None:
        """`settings.edge("size", "height")`; None where the setting or the key is missing."""
        return dict(self[name] or {}).get(key)

    def function(self, name: str) -> Callable[..., Any]:
        """A function of the module that defines the image processor."""
        return getattr(sys.modules[type(self.processor).__module__], name)


Outputs = dict[str, Any]
Count = Callable[[Settings, list[list[Size]]], Outputs]
"""From the sizes of images, grouped as they were passed (a flat list is one group), to what plugins read."""


def counting_image_processor(image_processor: Any) -> CountingImageProcessor | None:
    """A stand-in for `image_processor`; None where its class, or one of its settings, is not known here.

    The class must be transformers' own: a class of the same name from a model's repository may count otherwise.
    """
    cls = type(image_processor)
    family = FAMILIES.get(cls.__name__.removesuffix("Fast").removesuffix("Pil"))
    if family is None or not cls.__module__.startswith("transformers.models."):
        return None
    if not family.is_known(Settings(image_processor, {})):
        return None
    return CountingImageProcessor(image_processor)


class CountingImageProcessor:
    """Counts HeaderImages; every attribute is the real image processor's, and so are calls with real images."""

    def __init__(self, image_processor: Any) -> None:
        self.real = image_processor

    def __getattr__(self, name: str) -> Any:
        # Unpickling looks for methods before `real` is there.
        if name == "real" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.real, name)

    def __call__(self, images: Any, return_tensors: str | None = None, **settings: Any) -> BatchFeature:
        """What plugins read to write a prompt. `images`: a list, or a list of lists, of HeaderImages."""
        groups = list(images) if images and isinstance(images[0], list | tuple) else [images]
        if not all(isinstance(image, HeaderImage) for group in groups for image in group):
            return self.real(images, return_tensors=return_tensors, **settings)
        count = FAMILIES[type(self.real).__name__.removesuffix("Fast").removesuffix("Pil")].count
        sizes = [[self._size(image) for image in group] for group in groups]
        return BatchFeature(count(Settings(self.real, settings), sizes))

    def _size(self, image: HeaderImage) -> Size:
        backends = ("TorchvisionBackend", "PilBackend", "BaseImageProcessorFast")
        if any(base.__name__ in backends for base in type(self.real).__mro__):
            return image.height, image.width
        if image.height == 1 and not hasattr(self.real, "split_image"):
            raise ValueError("the NumPy image processors of transformers 4 cannot read an image of a single row")
        # Of 4.57, those in NumPy infer where the channels are, and take an image of 1 or 3 rows for channels first.
        array = torch.empty(image.height, image.width, 3, device="meta")
        # Of 4 rows too: Idefics3 and SmolVLM in transformers 4.57, where `split_images` has this name.
        channels = (1, 3, 4) if hasattr(self.real, "split_image") else (1, 3)
        return get_image_size(array, infer_channel_dimension_format(array, channels))


def _flat(groups: Sequence[list[Size]]) -> list[Size]:
    return [size for group in groups for size in group]


def _resizes(settings: Settings) -> bool:
    return bool(settings["do_resize"])


# --- image_grid_thw: Qwen2-VL to Qwen3.5, GLM-4V, ERNIE-4.5-VL --------------------------------------------------------


def _grid(settings: Settings, resized: list[Size]) -> Outputs:
    patch = settings["patch_size"]
    return {"image_grid_thw": torch.tensor([[1, height // patch, width // patch] for height, width in resized])}


def count_qwen2_vl(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """image_grid_thw [images, 3]: frames, rows and columns of patches."""
    smart_resize = settings.function("smart_resize")
    limits = {
        "factor": settings["patch_size"] * settings["merge_size"],
        "min_pixels": settings.edge("size", "shortest_edge"),
        "max_pixels": settings.edge("size", "longest_edge"),
    }
    return _grid(settings, [smart_resize(*size, **limits) for size in _flat(groups)])


def count_glm4v(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """As count_qwen2_vl; the limits are on the pixels of all frames, of which an image has `temporal_patch_size`."""
    smart_resize, frames = settings.function("smart_resize"), settings["temporal_patch_size"]
    limits = {
        "temporal_factor": frames,
        "factor": settings["patch_size"] * settings["merge_size"],
        "min_pixels": settings.edge("size", "shortest_edge"),
        "max_pixels": settings.edge("size", "longest_edge"),
    }
    return _grid(settings, [smart_resize(frames, *size, **limits) for size in _flat(groups)])


# --- crops: InternVL, Gemma 3, SmolVLM and Idefics3, LFM2-VL ----------------------------------------------------------


def count_got_ocr2(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """num_patches [images], an array because plugins sum it with NumPy; pixel_values [patches, 0] to be split by it."""
    patches = [
        settings.processor.get_number_of_image_patches(height, width, settings.call) for height, width in _flat(groups)
    ]
    return {"num_patches": np.array(patches), "pixel_values": torch.empty(sum(patches), 0)}


def count_gemma3(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """num_crops: crops besides the whole image, shaped as the class shapes it."""
    sizes, processor = _flat(groups), settings.processor
    num_crops = [0] * len(sizes)
    if settings["do_pan_and_scan"]:
        limits = {
            name: settings[name]
            for name in (
                "pan_and_scan_min_crop_size",
                "pan_and_scan_max_num_crops",
                "pan_and_scan_min_ratio_to_activate",
            )
        }
        batched = getattr(processor, "pan_and_scan_batched", None)
        crop, leading = (batched, (1, 3)) if batched else (processor.pan_and_scan, (3,))
        num_crops = [len(crop(torch.empty(*leading, *size, device="meta"), **limits)) for size in sizes]
    return {"num_crops": torch.tensor(num_crops)}


def count_idefics3(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """rows and cols, a list per group: tiles of each image beside the whole, 0 where it is not split. As transformers
    only with `return_row_col_info`."""
    if not settings["return_row_col_info"]:
        return {}
    tiles = [[_idefics3_tiles(settings, size) for size in group] for group in groups]
    return {
        "rows": [[rows for rows, _ in group] for group in tiles],
        "cols": [[cols for _, cols in group] for group in tiles],
    }


def _idefics3_tiles(settings: Settings, size: Size) -> Size:
    """Rows and columns. Not `get_number_of_image_patches`, which is wrong where `size` is no multiple of the tile: at
    2000 and 512, an image of 226 x 57 pixels is split into 2 x 4 tiles, and that says 1 x 4."""
    if not settings["do_image_splitting"]:
        return 0, 0
    height, width = settings.function("_resize_output_size_rescale_to_max_len")(
        *size, max_len=settings.edge("size", "longest_edge")
    )
    limit = settings.function("MAX_IMAGE_SIZE")
    height, width = settings.function("_resize_output_size_scale_below_upper_bound")(height, width, max_len=limit)
    tile = settings.edge("max_image_size", "longest_edge")
    assert tile
    # The method hands the size it computes to `self.resize`.
    recorder = SimpleNamespace(resize=lambda image, size, **_: size)
    target = type(settings.processor).resize_for_vision_encoder(
        recorder, torch.empty(3, height, width, device="meta"), tile
    )
    rows, cols = math.ceil(target["height"] / tile), math.ceil(target["width"] / tile)
    return (rows, cols) if rows > 1 or cols > 1 else (0, 0)


def count_lfm2_vl(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """spatial_shapes [tiles of all images, 2]: rows and columns of patches, an image's tiles first, then its thumbnail.
    With `return_row_col_info` also image_rows and image_cols (of tiles) and image_sizes (height and width of the image
    as one tile) by the processor's own method, since transformers 4.57 interchanges rows and columns."""
    processor, patch, tile = settings.processor, settings["encoder_patch_size"], settings["tile_size"]
    common = {name: settings[name] for name in ("downsample_factor", "max_image_tokens", "encoder_patch_size")}
    tiling = {"min_tiles": settings["min_tiles"], "max_tiles": settings["max_tiles"]}
    splits = settings["do_image_splitting"] and not tiling["min_tiles"] == tiling["max_tiles"] == 1
    shapes = []
    for height, width in _flat(groups):
        resized_width, resized_height = processor.smart_resize(
            height, width, min_image_tokens=settings["min_image_tokens"], **common
        )
        num_tiles = 0
        if splits and processor._is_image_too_large(
            height, width, max_pixels_tolerance=settings["max_pixels_tolerance"], **common
        ):
            *_, num_tiles = processor._get_grid_layout(height, width, tile_size=tile, **tiling)
            shapes += [[tile // patch, tile // patch]] * num_tiles
        if num_tiles == 0 or (settings["use_thumbnail"] and num_tiles > 1):
            shapes.append([resized_height // patch, resized_width // patch])
    outputs: Outputs = {"spatial_shapes": torch.tensor(shapes)}
    if settings["return_row_col_info"]:
        if not splits:
            tiling = {"min_tiles": 1, "max_tiles": 1}
        names = ("use_thumbnail", "min_image_tokens", "max_pixels_tolerance")
        arguments = {**common, **tiling, **{name: settings[name] for name in names}, "tile_size": tile}
        # How pixels are interpolated changes no size; transformers 4 and 5 name it differently.
        accepted = inspect.signature(processor.resize_and_split).parameters
        arguments["resample" if "resample" in accepted else "interpolation"] = InterpolationMode.BILINEAR
        found = [
            processor.resize_and_split(torch.empty(1, 3, height, width, device="meta"), **arguments)
            for height, width in _flat(groups)
        ]
        for place, name in enumerate(("image_rows", "image_cols", "image_sizes"), start=1):
            outputs[name] = torch.tensor([one[place][0] for one in found])
    return outputs


# --- soft tokens and sizes: Gemma 4, Pixtral, LLaVA -------------------------------------------------------------------


def count_gemma4(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """num_soft_tokens_per_image [images]."""
    patch, pooling = settings["patch_size"], settings["pooling_kernel_size"]
    resize = settings.function("get_aspect_ratio_preserving_size")
    limits = {
        "patch_size": patch,
        "max_patches": settings["max_soft_tokens"] * pooling**2,
        "pooling_kernel_size": pooling,
    }
    resized = [resize(*size, **limits) for size in _flat(groups)]
    tokens = [(height // patch) * (width // patch) // pooling**2 for height, width in resized]
    return {"num_soft_tokens_per_image": torch.tensor(tokens)}


def count_pixtral(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """image_sizes [images, 2]: height and width in pixels after resizing; pixel_values is there, without pixels."""
    longest = settings.edge("size", "longest_edge")
    patch = settings["patch_size"]
    limits = {
        "size": (longest, longest) if longest else (settings.edge("size", "height"), settings.edge("size", "width")),
        "patch_size": (patch, patch) if isinstance(patch, int) else (dict(patch)["height"], dict(patch)["width"]),
        "input_data_format": ChannelDimension.FIRST,
    }
    resize, sizes = settings.function("get_resize_output_image_size"), _flat(groups)
    resized = [resize(torch.empty(3, *size, device="meta"), **limits) for size in sizes]
    if any(0 in size for size in resized):
        raise ValueError("an image is so long and thin that its shorter side is resized to 0 pixels")
    return {"image_sizes": torch.tensor(resized), "pixel_values": torch.empty(len(sizes), 0)}


def count_fixed(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """pixel_values [images, 3, height, width], one zero that takes every place."""
    return {"pixel_values": torch.zeros(()).expand(len(_flat(groups)), 3, *_fixed_size(settings))}


def count_llava_next(settings: Settings, groups: list[list[Size]]) -> Outputs:
    """image_sizes [images, 2]: height and width before resizing; pixel_values [images, 1, 3, height, width], one zero
    that takes every place and one patch for however many."""
    sizes = _flat(groups)
    return {
        "image_sizes": torch.tensor(sizes),
        "pixel_values": torch.zeros(()).expand(len(sizes), 1, 3, *_fixed_size(settings)),
    }


def _fixed_size(settings: Settings) -> Size:
    """Height and width that every image, or patch of an image, is brought to; zeros where that depends on the image."""
    name = "crop_size" if settings["do_center_crop"] else "size"
    return settings.edge(name, "height") or 0, settings.edge(name, "width") or 0


def _is_fixed(settings: Settings) -> bool:
    return _resizes(settings) and all(_fixed_size(settings))


def _is_fixed_unpadded(settings: Settings) -> bool:
    return _is_fixed(settings) and not settings["do_pad"]


def _is_padded(settings: Settings) -> bool:
    """LFM2-VL resizes always; it leaves out spatial_shapes where it does not pad."""
    return bool(settings["do_pad"])


def _splits_by_edge(settings: Settings) -> bool:
    edges = settings.edge("size", "longest_edge"), settings.edge("max_image_size", "longest_edge")
    return _resizes(settings) and all(edges)


def _resizes_uncropped(settings: Settings) -> bool:
    return _resizes(settings) and not settings["do_center_crop"]


@dataclass(frozen=True)
class Family:
    """How the image processors of one name count."""

    count: Count
    is_known: Callable[[Settings], bool] = _resizes
    """Whether `count` holds with these settings."""


FAMILIES: dict[str, Family] = {
    "Qwen2VLImageProcessor": Family(count_qwen2_vl),
    "Ernie4_5_VLMoeImageProcessor": Family(count_qwen2_vl),
    "Glm4vImageProcessor": Family(count_glm4v),
    "Glm46VImageProcessor": Family(count_glm4v),
    "GotOcr2ImageProcessor": Family(count_got_ocr2),
    "Gemma3ImageProcessor": Family(count_gemma3),
    "Gemma4ImageProcessor": Family(count_gemma4),
    "Idefics3ImageProcessor": Family(count_idefics3, _splits_by_edge),
    "SmolVLMImageProcessor": Family(count_idefics3, _splits_by_edge),
    "Lfm2VlImageProcessor": Family(count_lfm2_vl, _is_padded),
    "PixtralImageProcessor": Family(count_pixtral, _resizes_uncropped),
    "LlavaNextImageProcessor": Family(count_llava_next, _is_fixed),
    "LlavaOnevisionImageProcessor": Family(count_llava_next, _is_fixed),
    "LlavaImageProcessor": Family(count_fixed, _is_fixed),
    "CLIPImageProcessor": Family(count_fixed, _is_fixed_unpadded),
    "SiglipImageProcessor": Family(count_fixed, _is_fixed_unpadded),
}
"""By class name without `Fast` and `Pil`."""
