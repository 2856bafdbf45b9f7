"""A checkpoint of a fully tuned VLM is resumed with its own weights; transformers alone keeps the base weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer


@pytest.fixture
def trained(twin: Any, tmp_path: Path) -> tuple[Any, Path]:
    """A twin and the checkpoint of a copy whose every weight is one higher."""
    model = AutoModelForImageTextToText.from_pretrained(twin("qwen2_5_vl"))
    other = AutoModelForImageTextToText.from_pretrained(twin("qwen2_5_vl"))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.save_pretrained(tmp_path / "checkpoint-1")
    return model, tmp_path / "checkpoint-1"


def sft_trainer(model: Any, folder: Path) -> Any:
    from llamafactory.hparams import get_train_args
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    arguments = {"model_name_or_path": "x", "stage": "sft", "do_train": True, "dataset": "x", "template": "qwen2_vl"}
    run = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "finetuning_type": "full"}
    _, _, training_args, finetuning_args, _ = get_train_args({**arguments, **run})
    return CustomSeq2SeqTrainer(
        model=model, args=training_args, finetuning_args=finetuning_args, tokenizer=None, processor=None
    )


def raised_share(model: Any, checkpoint: Path) -> float:
    """Share of the parameters that equal those of the checkpoint."""
    saved = AutoModelForImageTextToText.from_pretrained(checkpoint).state_dict()
    return sum(torch.equal(value, saved[name]) for name, value in model.state_dict().items()) / len(saved)


def test_every_weight_comes_from_the_checkpoint(trained: tuple[Any, Path], tmp_path: Path) -> None:
    model, checkpoint = trained
    trainer = sft_trainer(model, tmp_path)
    assert raised_share(model, checkpoint) == 0.0
    trainer._load_from_checkpoint(str(checkpoint))
    assert raised_share(model, checkpoint) == 1.0


def test_the_best_model_is_loaded_in_the_same_way(trained: tuple[Any, Path], tmp_path: Path) -> None:
    model, checkpoint = trained
    trainer = sft_trainer(model, tmp_path)
    trainer.state.best_model_checkpoint = str(checkpoint)
    trainer._load_best_model()
    assert raised_share(model, checkpoint) == 1.0


def test_transformers_alone_leaves_weights_as_they_were(trained: tuple[Any, Path], tmp_path: Path) -> None:
    """Why the seam is there: when this fails, transformers has been mended and the seam can go."""
    model, checkpoint = trained
    trainer = sft_trainer(model, tmp_path)
    Trainer._load_from_checkpoint(trainer, str(checkpoint))
    assert raised_share(model, checkpoint) < 0.6


def test_a_checkpoint_of_another_shape_is_refused(trained: tuple[Any, Path], twin: Any, tmp_path: Path) -> None:
    from lcot_plugin.integration.resume import load_full_weights

    model, checkpoint = trained
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"safetensors"):
        load_full_weights(model, str(checkpoint))


@pytest.mark.parametrize("frozen", [torch.bfloat16, torch.float32])
def test_each_weight_keeps_its_own_precision(twin: Any, tmp_path: Path, frozen: torch.dtype) -> None:
    """A frozen bfloat16 vision tower comes first; the language model trained in float32 must not be rounded to it."""
    from lcot_plugin.integration.resume import load_full_weights

    model = AutoModelForImageTextToText.from_pretrained(twin("qwen2_5_vl"), dtype=torch.float32)
    model.model.visual.to(frozen)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    assert any(not torch.equal(v, v.bfloat16().float()) for v in trained.values() if v.dtype == torch.float32)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    load_full_weights(model, str(tmp_path))
    assert next(model.parameters()).dtype == frozen
    for name, value in model.state_dict().items():
        assert value.dtype == trained[name].dtype and torch.equal(value, trained[name]), name


def test_an_optimizer_is_loaded_to_a_numbered_cpu(tmp_path: Path) -> None:
    """`cpu:0` is the device of a process among several; importing the trainer brings the seam."""
    import llamafactory.train.sft.trainer  # noqa: F401

    torch.save({"step": torch.arange(3.0)}, tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", map_location=torch.device("cpu:0"), weights_only=True)
    assert loaded["step"].tolist() == [0.0, 1.0, 2.0]
