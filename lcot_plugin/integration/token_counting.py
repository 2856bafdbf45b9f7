"""Image tokens without decoding images: LLaMA-Factory's own `process_messages`, run on headers.

LLaMA-Factory decodes and preprocesses every image while tokenising, only to count its tokens, and the collator does it
again. Its plugins take the pixels from nowhere but `processor.image_processor`; with `without_pixels(processor)` in the
processor's place and `read_header(image)` in each image's, the plugin's code runs unchanged and writes the same text.

Upstream: hiyouga/LLaMA-Factory, `data/mm_plugin.py` of 0.9.5. This can go once upstream counts from image sizes.
"""

from __future__ import annotations

import copy
from typing import Any

from lcot_plugin.render.counting import counting_image_processor


def without_pixels(processor: Any) -> Any | None:
    """A copy of a multimodal processor whose image processor counts from headers.

    None where the counting of its image processor is not known (see `render.counting`): then images must be decoded.
    Videos and audio are not counted from headers: records that have some need the processor itself. The copy shares
    everything else with `processor` and can be pickled where that can.
    """
    image_processor = counting_image_processor(getattr(processor, "image_processor", None))
    if image_processor is None:
        return None
    counting = copy.copy(processor)
    counting.image_processor = image_processor
    return counting
