"""Seam: `llamafactory.data.mm_plugin`. Registers the multimodal plugins that the `_lcot` templates need.

In:  a conversation with `<image>` in it, and its images.
Out: the text that the model's processor would have made of the model's chat template, and the tensors that its forward
     takes.

LLaMA-Factory 0.9.5 has no plugin for SmolVLM/Idefics3 and LLaVA-OneVision, and the one for LFM2-VL leaves out the image
delimiters and counts one tile of an image that has several. The others it has write image blocks as the processor does,
but take the line breaks around `<image>` from the data set, where the model's chat template decides about them; each
gets a variant here (`<plugin>_lcot`) that arranges the text first. A plugin here can go when LLaMA-Factory has its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

IMAGE = "<image>"
"""LLaMA-Factory's placeholder, for every family."""
MEDIA = re.compile(r"(<image>|<video>|<audio>)")
LEADING_MEDIA = re.compile(r"\s*((?:(?:<image>|<video>)\s*)*)")

Conversation = list[dict[str, str]]


def line_after_media(content: str) -> str:
    r"""`<image>Why?` becomes `<image>\nWhy?`, and so does `<image>\nWhy?`."""
    return re.sub(r"(<image>|<video>)\n?", r"\1\n", content)


def trimmed(content: str) -> str:
    r"""Every piece of text between media without the white space around it: `<image>\nWhy? ` becomes `<image>Why?`."""
    return "".join(piece if MEDIA.fullmatch(piece) else piece.strip() for piece in MEDIA.split(content))


def media_on_first_line(content: str) -> str:
    r"""The media that start a turn, then a line break, also where there are none: `Why?` becomes `\nWhy?`."""
    leading = LEADING_MEDIA.match(content)
    assert leading is not None  # it matches the empty text too
    return re.sub(r"\s", "", leading.group(1)) + "\n" + content[leading.end() :]


def space_before_text(content: str) -> str:
    """A blank before a turn that starts with text, none before an image."""
    content = content.lstrip()
    return content if content.startswith(IMAGE) else f" {content}"


class Arranged:
    """Mixin over a plugin: arranges the user's turns as the model's chat template would, before images are expanded."""

    arrange: Callable[[str], str] = staticmethod(lambda content: content)

    def process_messages(
        self, messages: Conversation, images: list[Any], videos: list[Any], audios: list[Any], processor: Any
    ) -> Conversation:
        arranged = [
            {**turn, "content": self.arrange(turn["content"])} if turn["role"] == "user" else turn for turn in messages
        ]
        return super().process_messages(arranged, images, videos, audios, processor)  # type: ignore[misc]


class ImageBlocks:
    """Mixin over BasePlugin for families whose processor writes more than a run of image tokens.

    Counts come from sizes, rows and columns, never from pixels, so that a stand-in image processor can serve.
    """

    def process_messages(
        self, messages: Conversation, images: list[Any], videos: list[Any], audios: list[Any], processor: Any
    ) -> Conversation:
        """Raises ValueError where images and `<image>` differ in number, and for videos and audios."""
        self._validate_input(processor, images, videos, audios)
        self._validate_messages(messages, images, videos, audios)
        if not images:
            return [dict(turn) for turn in messages]
        blocks = iter(self._blocks(images, processor) if self.expand_mm_tokens else [IMAGE] * len(images))
        # One pass: the blocks themselves hold image tokens that look like the placeholder.
        return [{**turn, "content": re.sub(IMAGE, lambda _: next(blocks), turn["content"])} for turn in messages]

    def _blocks(self, images: list[Any], processor: Any) -> list[str]:
        regular = self.regular(images, processor)
        blocks = self.image_blocks(regular, processor)
        for image, given in zip(regular, images, strict=True):
            if image is not given:
                image.close()  # Pillow keeps the file open until the pixels are read, which counting does not do
        return blocks

    def get_mm_inputs(
        self,
        images: list[Any],
        videos: list[Any],
        audios: list[Any],
        imglens: list[int],
        vidlens: list[int],
        audlens: list[int],
        batch_ids: list[Any],
        processor: Any,
    ) -> dict[str, Any]:
        """Tensors whose first axis runs over images or tiles, so that those of several batches can be concatenated."""
        self._validate_input(processor, images, videos, audios)
        return self.image_tensors(self.regular(images, processor), list(imglens), processor) if images else {}

    def regular(self, images: list[Any], processor: Any) -> list[Any]:
        """The images in RGB, scaled to `image_max_pixels` and `image_min_pixels` as LLaMA-Factory does."""
        return self._regularize_images(
            images,
            image_max_pixels=getattr(processor, "image_max_pixels", 768 * 768),
            image_min_pixels=getattr(processor, "image_min_pixels", 32 * 32),
        )["images"]

    def image_blocks(self, images: list[Any], processor: Any) -> list[str]:
        """What stands for each image of one conversation."""
        raise NotImplementedError

    def image_tensors(self, images: list[Any], imglens: list[int], processor: Any) -> dict[str, Any]:
        """`imglens`: the number of images in each sequence of the batch."""
        raise NotImplementedError


class SmolVlmBlocks(ImageBlocks):
    """SmolVLM, SmolVLM2 and Idefics3: tiles in rows and columns, then the whole image.

    A 2 x 1 grid with 2 tokens per tile, `~` for <fake_token_around_image>, `.` for <image>:

        ~<row_1_col_1>..⏎~<row_2_col_1>..⏎⏎~<global-img>..~
    """

    def image_blocks(self, images: list[Any], processor: Any) -> list[str]:
        sizes = processor.image_processor([images], return_row_col_info=True, return_tensors="pt")
        return [smolvlm_block(*grid, processor) for grid in zip(sizes["rows"][0], sizes["cols"][0], strict=True)]

    def image_tensors(self, images: list[Any], imglens: list[int], processor: Any) -> dict[str, Any]:
        """pixel_values [tiles, 1, 3, height, width], pixel_attention_mask [tiles, 1, height, width].

        The processor gives [batch, tiles, ...], padded with tiles that the model drops again; the model joins both axes
        before it looks at them.
        """
        tensors = processor.image_processor([images], return_tensors="pt")
        return {
            name: tensors[name].transpose(0, 1) for name in ("pixel_values", "pixel_attention_mask") if name in tensors
        }


def smolvlm_block(rows: int, cols: int, processor: Any) -> str:
    """What stands for an image of `rows` x `cols` tiles; 0 x 0 for one that is not split."""
    edge = processor.fake_image_token
    # Idefics3's processor calls it a tag.
    overview = getattr(processor, "global_image_token", None) or processor.global_image_tag
    run = processor.image_token * processor.image_seq_len
    whole = f"{edge}{overview}{run}{edge}"
    if not rows and not cols:
        return whole
    lines = ("".join(f"{edge}<row_{r + 1}_col_{c + 1}>{run}" for c in range(cols)) for r in range(rows))
    return "".join(f"{line}\n" for line in lines) + f"\n{whole}"


class LlavaOnevisionBlocks(ImageBlocks):
    """LLaVA-OneVision: tiles of any resolution for the only image of a conversation, one tile each for several."""

    def image_blocks(self, images: list[Any], processor: Any) -> list[str]:
        if len(images) > 1:
            lengths = [processor.num_image_tokens + 1] * len(images)  # one for the newline embedding
        else:
            tile = tile_size(processor)
            lengths = [processor._get_number_of_features(image.height, image.width, tile, tile) for image in images]
        without_class_token = processor.vision_feature_select_strategy == "default"
        return [processor.image_token * (int(length) - without_class_token) for length in lengths]

    def image_tensors(self, images: list[Any], imglens: list[int], processor: Any) -> dict[str, Any]:
        """pixel_values [tiles, 3, height, width], image_sizes [images, 2], batch_num_images [sequences with images].

        The processor pads every image to the largest number of tiles in the batch; without that padding the tensors of
        several batches can be concatenated, and the model takes them as well.
        """
        import torch
        from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

        counts = [count for count in imglens if count]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        nested = [images[start : start + count] for start, count in zip(starts, counts, strict=True)]
        tensors = processor.image_processor(nested, return_tensors="pt")
        pinpoints, tile = processor.image_processor.image_grid_pinpoints, tile_size(processor)
        alone = [count == 1 for count in counts for _ in range(count)]
        tiles = [
            padded[: image_size_to_num_patches(size, pinpoints, tile) if single else 1]
            for padded, size, single in zip(
                tensors["pixel_values"], tensors["image_sizes"].tolist(), alone, strict=True
            )
        ]
        return {
            "pixel_values": torch.cat(tiles),
            "image_sizes": tensors["image_sizes"],
            "batch_num_images": torch.tensor(counts),
        }


def tile_size(processor: Any) -> int:
    """Side of a tile in pixels."""
    size = processor.image_processor.size
    return size["shortest_edge"] if "shortest_edge" in size else size["height"]


class Lfm2VlBlocks(ImageBlocks):
    """LFM2-VL: `<|image_start|>`, tiles with their row and column, a thumbnail, `<|image_end|>`."""

    def image_blocks(self, images: list[Any], processor: Any) -> list[str]:
        sizes = processor.image_processor([images], return_row_col_info=True, return_tensors="pt")
        return processor.expand_text_with_placeholders(
            [processor.image_token] * len(images),
            [[image] for image in images],
            image_rows=sizes["image_rows"],
            image_cols=sizes["image_cols"],
            image_sizes=[[int(side) for side in size] for size in sizes["image_sizes"]],
            use_image_special_tokens=True,
        )

    def image_tensors(self, images: list[Any], imglens: list[int], processor: Any) -> dict[str, Any]:
        """pixel_values [tiles, patches, values], spatial_shapes [tiles, 2], pixel_attention_mask [tiles, patches]."""
        return dict(processor.image_processor([images], return_tensors="pt"))


NEW: dict[str, tuple[type, Callable[[str], str]]] = {
    "smolvlm": (SmolVlmBlocks, space_before_text),
    "llava_onevision": (LlavaOnevisionBlocks, media_on_first_line),
    "lfm2_vl_tiles": (Lfm2VlBlocks, lambda content: content),
}
"""Plugin -> what it does with images, and how its users' turns are arranged."""

ARRANGED: dict[str, Callable[[str], str]] = {
    "gemma3": trimmed,
    "gemma3n": trimmed,
    "gemma4": trimmed,
    "intern_vl": line_after_media,
    "llava": line_after_media,
    "minicpm_v": line_after_media,
    "minicpm_v_4_6": line_after_media,
}
"""Plugin of LLaMA-Factory -> how the users' turns are arranged in its `_lcot` variant."""


def apply(module: ModuleType) -> None:
    """Registers the plugins, those that LLaMA-Factory has by now excepted."""
    for name, (blocks, arrange) in NEW.items():
        if name not in module.PLUGINS:
            register(module, name, (Arranged, blocks, module.BasePlugin), arrange)
    for name, arrange in ARRANGED.items():
        if f"{name}_lcot" not in module.PLUGINS:
            register(module, f"{name}_lcot", (Arranged, module.PLUGINS[name]), arrange)


def register(module: ModuleType, name: str, bases: tuple[type, ...], arrange: Callable[[str], str]) -> None:
    """Makes the class an attribute of `module`, where processes that unpickle a template look for it."""
    class_name = "".join(part.capitalize() for part in name.split("_")) + "Plugin"
    plugin_class = type(class_name, bases, {"arrange": staticmethod(arrange), "__module__": module.__name__})
    setattr(module, class_name, plugin_class)
    module.register_mm_plugin(name, plugin_class)
