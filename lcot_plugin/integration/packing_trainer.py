"""LLaMA-Factory's SFT trainer on packs: what the seam (packing.py) puts in the place of the trainer.

In: the arguments that the workflow gives its trainer, and the run's. Out: a PackingTrainer with its data measured, its
cost model, its collate function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llamafactory.extras.logging import get_logger
from llamafactory.model.model_utils.visual import COMPOSITE_MODELS
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

from lcot_plugin.integration.example_sizes import Admission, SizeCounter, StreamSizes, measure
from lcot_plugin.integration.media import PromptEncoder
from lcot_plugin.integration.packing_collator import PackCollator
from lcot_plugin.integration.refusals import RunArguments, uses_zero_3
from lcot_plugin.packing.attention import check_packable
from lcot_plugin.packing.cost import CostModel, cost_of_model
from lcot_plugin.packing.families import trains_vision
from lcot_plugin.packing.trainer import PackingParts, PackingTrainerMixin
from lcot_plugin.report.packing import PACKING_PLOT, plot_packing
from lcot_plugin.types import PackLimits
from lcot_plugin.vlm import VisionLanguageModel, unwrap_base_model

logger = get_logger(f"llamafactory.{__name__}")  # a child of LLaMA-Factory's: that one's handlers print it


class PackingTrainer(PackingTrainerMixin, CustomSeq2SeqTrainer):
    """LLaMA-Factory's SFT trainer, on packs."""


def packing_trainer(run: RunArguments, arguments: dict[str, Any]) -> PackingTrainer:
    """`arguments`: what the workflow gives its trainer."""
    model, template = arguments["model"], arguments["data_collator"].template
    tokenizer, processor = arguments["tokenizer"], arguments["processor"]
    check_packable(model)
    plugin = template.mm_plugin
    vlm = VisionLanguageModel(model, tokenizer, (plugin.image_token, plugin.video_token, plugin.audio_token))
    trainer = PackingTrainer(**arguments)
    filler = None
    if plugin.image_token is not None and needs_vision_in_every_pack(run, trainer, model):
        filler = PromptEncoder(template, processor, vlm).white_image(tokenizer)
    counter = SizeCounter.of_model(unwrap_base_model(model).config, vlm)
    data = run.data
    limits = PackLimits(data.pack_max_tokens, data.pack_max_patches)
    sizes = None
    if not data.streaming:
        sizes, kept = measure(arguments["train_dataset"], counter, limits, data.overlong_policy)
        trainer.train_dataset = trainer.train_dataset if kept is None else trainer.train_dataset.select(kept)
    trainer.setup_packing(
        PackingParts(
            limits=limits,
            cost=model_cost(model),
            collate=PackCollator(template, processor, vlm, data.pack_loss_weighting == "example", filler),
            sizes=sizes,
            size_of=StreamSizes(counter, Admission(limits, data.overlong_policy)),
            mode=data.pack_mode,
            fits_cost=data.pack_cost == "auto",
            buffer_size=data.pack_buffer_size,
            shuffle=not run.finetuning.disable_shuffling,
            say=logger.info_rank0,
            warn=logger.warning_rank0,
            plot=plotter(run, limits) if trainer.args.should_save and run.finetuning.plot_loss else None,
        )
    )
    return trainer


def plotter(run: RunArguments, limits: PackLimits) -> Callable[..., None]:
    """Draws the first plan into the output folder."""
    folder = Path(run.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return partial(plot_packing, max_tokens=limits.max_tokens, path=folder / PACKING_PLOT)


def needs_vision_in_every_pack(run: RunArguments, trainer: Any, model: Any) -> bool:
    """Whether a pack of text alone would have nothing to train, or would keep other processes waiting: for the vision
    tower's gradients, or for a share of its sharded weights."""
    shared = trains_vision(model) or uses_zero_3(run)
    return run.finetuning.freeze_language_model or (trainer.accelerator.num_processes > 1 and shared)


def model_cost(model: Any) -> CostModel:
    """What tokens, attention and patches cost in a training step of this model, from its shape."""
    base = unwrap_base_model(model)
    text = base.config.get_text_config()
    family = COMPOSITE_MODELS.get(base.config.model_type)
    keys = [*family.vision_model_keys, *family.projector_keys] if family else []
    embedding, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    language, vision, trained = 0, 0, {"language": 0, "vision": 0}
    for name, parameter in base.named_parameters():
        size = num_weights(parameter)
        of_vision = any(key in name for key in keys)
        if of_vision:
            vision += size
        elif parameter is not embedding or embedding is head:  # looking tokens up costs nothing
            language += size
        if parameter.requires_grad:
            trained["vision" if of_vision else "language"] += size
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return cost_of_model(
        language_parameters=language,
        num_layers=text.num_hidden_layers,
        attention_width=text.num_attention_heads * head_dim,
        vision_parameters=vision,
        language_trained=trained["language"] > language / 2,
        vision_trained=trained["vision"] > vision / 2,
    )


def num_weights(parameter: Any) -> int:
    """Weights behind a parameter that may be sharded (ZeRO-3) or packed two to a byte (bitsandbytes)."""
    if type(parameter).__name__ == "Params4bit":
        return parameter.numel() * 2 * parameter.element_size()
    return getattr(parameter, "ds_numel", parameter.numel())
