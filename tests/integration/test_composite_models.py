"""Freezing and LoRA in the families that LLaMA-Factory does not know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from loaded_twins import load_model

from lcot_plugin.integration.composite_models import MODELS

PARTS = {"smolvlm": ("vision_model", "connector"), "llava_onevision": ("vision_tower", "multi_modal_projector")}


@pytest.mark.parametrize("family", PARTS)
def test_the_vision_tower_and_the_projector_can_be_told_from_the_rest(family: str, twin: Any) -> None:
    from llamafactory.model.model_utils.misc import find_all_linear_modules
    from llamafactory.model.model_utils.visual import COMPOSITE_MODELS, get_forbidden_modules, patch_target_modules

    vision, projector = PARTS[family]
    model = load_model(twin(family))
    frozen = SimpleNamespace(freeze_vision_tower=True, freeze_multi_modal_projector=True, freeze_language_model=False)
    forbidden = get_forbidden_modules(model.config, frozen)
    trained = [name for name, _ in model.named_parameters() if not any(part in name for part in forbidden)]
    assert trained and not any(vision in name or projector in name for name in trained)
    assert any("q_proj" in name for name in trained)

    targets = patch_target_modules(model, frozen, find_all_linear_modules(model, freeze_vision_tower=True))
    assert targets and not any(vision in name or projector in name for name in targets)
    assert {"q_proj", "down_proj"} <= {name.rsplit(".", 1)[-1] for name in targets}
    assert len(COMPOSITE_MODELS[family].get_projectors(model)) == 1

    open_tower = SimpleNamespace(
        freeze_vision_tower=False, freeze_multi_modal_projector=False, freeze_language_model=True
    )
    forbidden = get_forbidden_modules(model.config, open_tower)
    trained = [name for name, _ in model.named_parameters() if not any(part in name for part in forbidden)]
    assert any(vision in name for name in trained) and any(projector in name for name in trained)
    assert not any("lm_head" in name or "embed_tokens" in name for name in trained)


def test_every_family_is_registered_once() -> None:
    from llamafactory.model.model_utils import visual

    from lcot_plugin.integration import composite_models

    before = dict(visual.COMPOSITE_MODELS)
    composite_models.apply(visual)
    assert before == visual.COMPOSITE_MODELS and MODELS.keys() <= before.keys()
