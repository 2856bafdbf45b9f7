"""Processors of real models around transformers' real image processors, with the LLaMA-Factory plugins that use them.

What the models' preprocessor_config.json set is written here; the processors have no tokenizer, because writing a
prompt needs none. Shared by the tests and benchmarks/token_counts.py; both transformers majors.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import transformers
from llamafactory.data.mm_plugin import BasePlugin, get_mm_plugin
from PIL import Image

from lcot_plugin.integration.token_counting import without_pixels
from lcot_plugin.render.headers import read_header

TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5
MESSAGES = [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A picture."}]
REFUSED = "refused"
EXTREME_SIZES = [(1, 2000), (3000, 2), (1, 1), (27, 27), (28, 28), (448, 448), (512, 512), (512, 1024), (513, 1025)]
EXTREME_SIZES += [(200, 1), (1, 199), (1400, 7), (30, 1500), (768, 768), (1344, 336), (896, 896), (1024, 1023)]
EXTREME_SIZES += [(278, 3), (318, 1)]  # rows that could be taken for channels


class TilesPlugin(BasePlugin):
    """Writes rows and columns, as plugins of Idefics3 and SmolVLM do."""

    def process_messages(self, messages: Any, images: Any, videos: Any, audios: Any, processor: Any) -> Any:
        images = self._regularize_images(
            images, image_max_pixels=processor.image_max_pixels, image_min_pixels=processor.image_min_pixels
        )["images"]
        outputs = processor.image_processor(images, return_tensors="pt", return_row_col_info=True)
        return [{"role": "user", "content": f"rows {outputs['rows']}, columns {outputs['cols']}"}]


class SizesPlugin(BasePlugin):
    """Writes image_sizes and the size of a patch, as a plugin of LLaVA-OneVision does."""

    def process_messages(self, messages: Any, images: Any, videos: Any, audios: Any, processor: Any) -> Any:
        outputs = self._get_mm_inputs(images, videos, audios, processor)
        patch = tuple(outputs["pixel_values"].shape[-2:])
        return [{"role": "user", "content": f"sizes {outputs['image_sizes'].tolist()}, patches {patch}"}]


class CropsPlugin(BasePlugin):
    """Writes num_crops: LLaMA-Factory's own Gemma 3 plugin reads them as a nested list, and finds none in transformers
    4.57 and 5.5."""

    def process_messages(self, messages: Any, images: Any, videos: Any, audios: Any, processor: Any) -> Any:
        outputs = self._get_mm_inputs(images, videos, audios, processor)
        return [{"role": "user", "content": f"crops {outputs['num_crops'].tolist()}"}]


@dataclass
class Case:
    """An image processor and the plugin that reads its outputs."""

    plugin: Any
    processor: Any

    @property
    def image_processor(self) -> Any:
        return self.processor.image_processor

    def text(self, images: list[Any], processor: Any) -> str:
        """What the plugin writes, or that it refuses: what LLaMA-Factory refuses must stay refused."""
        messages = [{"role": "user", "content": "<image>" * len(images) + "What is this?"}, MESSAGES[1]]
        try:
            written = self.plugin.process_messages(messages, images, [], [], processor)
        except (ValueError, IndexError, RuntimeError):
            return REFUSED
        return "".join(message["content"] for message in written)

    def texts(self, contents: list[bytes], processor: Any = None) -> tuple[str, str]:
        """Written from pixels, and from headers (by `processor` instead of the one to be tested)."""
        counting = processor or without_pixels(self.processor)
        return self.text(contents, self.processor), self.text([read_header(image) for image in contents], counting)


def encode(size: tuple[int, int], image_format: str = "PNG", mode: str = "RGB") -> bytes:
    """A plain image of `size` (width, height) as the contents of a file."""
    buffer = io.BytesIO()
    Image.new(mode, size, color=1).save(buffer, format=image_format)
    return buffer.getvalue()


def random_sizes(num: int, seed: int, max_pixels: int = 1_000_000) -> list[tuple[int, int]]:
    """Widths and heights: the extreme ones, exact multiples of patches and tiles, and any aspect ratio up to 1:300."""
    generator, sizes = random.Random(seed), list(EXTREME_SIZES)
    while len(sizes) < num:
        if generator.random() < 0.25:
            unit = generator.choice([14, 16, 28, 32, 224, 256, 336, 384, 448, 512])
            size = unit * generator.randint(1, 6), unit * generator.randint(1, 6)
        else:
            area, spread = (
                math.exp(generator.uniform(math.log(64), math.log(max_pixels))),
                generator.choice([4, 4, 300]),
            )
            ratio = math.exp(generator.uniform(-math.log(spread), math.log(spread)))
            size = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if size[0] * size[1] <= max_pixels:
            sizes.append(size)
    return sizes[:num]


def image_processor(name: str, *, numpy: bool = False, **settings: Any) -> Any:
    """The torch image processor `name`, or the NumPy one; transformers 4 and 5 name them differently."""
    suffix = ("Pil" if numpy else "") if TRANSFORMERS_5 else ("" if numpy else "Fast")
    return getattr(transformers, name + suffix)(**settings)


def has_image_processor(name: str) -> bool:
    return hasattr(transformers, name if TRANSFORMERS_5 else f"{name}Fast")


def processor(image_processor: Any, **attributes: Any) -> SimpleNamespace:
    pixels = {"image_max_pixels": 768 * 768, "image_min_pixels": 32 * 32}
    return SimpleNamespace(
        image_processor=image_processor, video_processor=SimpleNamespace(merge_size=2), **(pixels | attributes)
    )


def grid(plugin: str, name: str, **settings: Any) -> Callable[[], Case]:
    return lambda: Case(
        get_mm_plugin(plugin, image_token="<i>", video_token="<v>"), processor(image_processor(name, **settings))
    )


def internvl(passed: dict[str, Any], **settings: Any) -> Callable[[], Case]:
    """`passed`: attributes by which LLaMA-Factory asks for crops."""
    return lambda: Case(
        get_mm_plugin("intern_vl", image_token="<image>", video_token="<video>"),
        processor(
            image_processor("GotOcr2ImageProcessor", size={"height": 448, "width": 448}, **settings),
            image_seq_length=256,
            **passed,
        ),
    )


def gemma3(pan_and_scan: bool, plugin: type | None = None, **settings: Any) -> Callable[[], Case]:
    return lambda: Case(
        plugin("<i>", None, None) if plugin else get_mm_plugin("gemma3", image_token="<i>"),
        processor(
            image_processor("Gemma3ImageProcessor", size={"height": 896, "width": 896}, **settings),
            boi_token="<b>",
            full_image_sequence="<b><i><i></b>",
            image_do_pan_and_scan=pan_and_scan,
        ),
    )


def gemma3n() -> Case:
    return Case(
        get_mm_plugin("gemma3n", image_token="<i>", audio_token="<a>"),
        processor(
            image_processor("SiglipImageProcessor", size={"height": 768, "width": 768}),
            boi_token="<b>",
            boa_token="<a>",
            full_image_sequence="<b><i><i></b>",
            full_audio_sequence="<a>",
            feature_extractor=SimpleNamespace(),
        ),
    )


def gemma4(**settings: Any) -> Callable[[], Case]:
    names = {f"{kind}_token": f"<|{kind}|>" for kind in ("boi", "eoi", "boa", "eoa", "image", "video", "audio")}
    return lambda: Case(
        get_mm_plugin("gemma4", image_token="<i>", video_token="<v>"),
        processor(image_processor("Gemma4ImageProcessor", **settings), **names),
    )


def llava(name: str, patch_size: int, additional: int, **settings: Any) -> Callable[[], Case]:
    return lambda: Case(
        get_mm_plugin("llava", image_token="<i>"),
        processor(
            image_processor(name, **settings),
            patch_size=patch_size,
            num_additional_image_tokens=additional,
            vision_feature_select_strategy="default" if additional else "full",
        ),
    )


def llava_next(**settings: Any) -> Callable[[], Case]:
    def build() -> Case:
        # Its counting is a method; the constructor would want a tokenizer.
        real = object.__new__(transformers.LlavaNextProcessor)
        vars(real).update(
            image_processor=image_processor("LlavaNextImageProcessor", size={"shortest_edge": 336}, **settings),
            patch_size=14,
            num_additional_image_tokens=1,
            vision_feature_select_strategy="default",
            image_max_pixels=768 * 768,
            image_min_pixels=32 * 32,
        )
        return Case(get_mm_plugin("llava_next", image_token="<i>"), real)

    return build


def llava_onevision() -> Case:
    return Case(SizesPlugin("<i>", None, None), processor(image_processor("LlavaOnevisionImageProcessor")))


def paligemma(side: int) -> Callable[[], Case]:
    return lambda: Case(
        get_mm_plugin("paligemma", image_token="<i>"),
        processor(image_processor("SiglipImageProcessor", size={"height": side, "width": side})),
    )


def pixtral(longest: int, patch: int, merge: int, **settings: Any) -> Callable[[], Case]:
    return lambda: Case(
        get_mm_plugin("pixtral", image_token="<i>"),
        processor(
            image_processor(
                "PixtralImageProcessor",
                size={"longest_edge": longest},
                patch_size={"height": patch * merge, "width": patch * merge},
                **settings,
            ),
            patch_size=patch,
            spatial_merge_size=merge,
            image_break_token="<break>",
            image_end_token="<end>",
        ),
    )


def tiles(name: str, longest: int, tile: int, **settings: Any) -> Callable[[], Case]:
    return lambda: Case(
        TilesPlugin("<i>", None, None),
        processor(
            image_processor(name, size={"longest_edge": longest}, max_image_size={"longest_edge": tile}, **settings)
        ),
    )


def lfm2_vl(**settings: Any) -> Callable[[], Case]:
    return lambda: Case(
        get_mm_plugin("lfm2_vl", image_token="<i>"), processor(image_processor("Lfm2VlImageProcessor", **settings))
    )


def lfm2_vl_tiles(**settings: Any) -> Callable[[], Case]:
    """With the plugin of the `_lcot` template, which writes delimiters, tiles and thumbnail as the processor does."""

    def build() -> Case:
        real = object.__new__(transformers.Lfm2VlProcessor)  # the constructor would want a tokenizer
        vars(real).update(
            image_processor=image_processor("Lfm2VlImageProcessor", **settings),
            image_token="<image>",
            image_start_token="<|image_start|>",
            image_end_token="<|image_end|>",
            image_thumbnail_token="<|img_thumbnail|>",
            image_max_pixels=768 * 768,
            image_min_pixels=32 * 32,
        )
        return Case(get_mm_plugin("lfm2_vl_tiles", image_token="<image>"), real)

    return build


CLIP_336 = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
QWEN2 = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}
QWEN3 = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
GLM = {"size": {"shortest_edge": 12544, "longest_edge": 9633792}}

FAMILIES: dict[str, Callable[[], Case]] = {
    "Qwen2-VL, Qwen2.5-VL": grid("qwen2_vl", "Qwen2VLImageProcessor", **QWEN2),
    "Qwen2-VL, 256 to 1280 tokens": grid(
        "qwen2_vl", "Qwen2VLImageProcessor", min_pixels=256 * 28 * 28, max_pixels=1280 * 28 * 28
    ),
    "Qwen2-VL, NumPy": grid("qwen2_vl", "Qwen2VLImageProcessor", numpy=True, **QWEN2),
    "Qwen3-VL, Qwen3.5": grid("qwen3_vl", "Qwen2VLImageProcessor", **QWEN3),
    "GLM-4.1V": grid("glm4v", "Glm4vImageProcessor", **GLM),
    "InternVL": internvl({}, crop_to_patches=False),
    "InternVL, crop_to_patches": internvl({"crop_to_patches": True}, crop_to_patches=False),
    "InternVL, crops by its own settings": internvl({}, crop_to_patches=True, min_patches=2, max_patches=6),
    "InternVL, NumPy": internvl({"crop_to_patches": True}, numpy=True),
    "Gemma 3": gemma3(False),
    "Gemma 3, pan and scan": gemma3(True),
    "Gemma 3, crops": gemma3(True, CropsPlugin),
    "Gemma 3, crops, NumPy": gemma3(True, CropsPlugin, numpy=True),
    "Gemma 3n": gemma3n,
    "PaliGemma": paligemma(448),
    "SmolVLM2": tiles("SmolVLMImageProcessor", 2048, 512),
    "SmolVLM2, no whole number of tiles": tiles("SmolVLMImageProcessor", 2000, 512),
    "SmolVLM2, not split": tiles("SmolVLMImageProcessor", 2048, 512, do_image_splitting=False),
    "SmolVLM, NumPy": tiles("SmolVLMImageProcessor", 1536, 384, numpy=True),
    "SmolVLM, Idefics3": tiles("Idefics3ImageProcessor", 1456, 364),
    "LLaVA 1.5": llava("CLIPImageProcessor", 14, 1, **CLIP_336),
    "LLaVA, squared": llava("LlavaImageProcessor", 14, 1, do_pad=True, **CLIP_336),
    "LLaVA with SigLIP": llava("SiglipImageProcessor", 14, 0, size={"height": 378, "width": 364}),
    "LLaVA-NeXT": llava_next(crop_size={"height": 336, "width": 336}),
    "LLaVA-OneVision": llava_onevision,
    "LFM2-VL": lfm2_vl(),
    "LFM2-VL, not split": lfm2_vl(do_image_splitting=False),
    "LFM2-VL, 4 tiles, no thumbnail": lfm2_vl(max_tiles=4, use_thumbnail=False, max_image_tokens=128),
    "LFM2-VL, tiles": lfm2_vl_tiles(max_image_tokens=128),
    "LFM2-VL, tiles, never split": lfm2_vl_tiles(do_image_splitting=False),
    "Pixtral": pixtral(1024, 16, 1),
    "Mistral Small 3": pixtral(1540, 14, 2),
}
if has_image_processor("Gemma4ImageProcessor"):
    FAMILIES["Gemma 4"] = gemma4()
    FAMILIES["Gemma 4, 70 tokens"] = gemma4(max_soft_tokens=70)
    FAMILIES["Gemma 4, NumPy"] = gemma4(numpy=True)
if has_image_processor("Glm46VImageProcessor"):
    FAMILIES["GLM-4.6V"] = grid("glm4v", "Glm46VImageProcessor", **GLM)
if has_image_processor("Ernie4_5_VLMoeImageProcessor"):
    FAMILIES["ERNIE-4.5-VL"] = grid("ernie_vl", "Ernie4_5_VLMoeImageProcessor")
"""What is compared, by name: every image processor that render.counting knows, by its important settings."""
