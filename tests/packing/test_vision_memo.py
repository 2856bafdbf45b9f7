"""When features are computed, when they are remembered, and what is refused; with a tower of one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lcot_plugin.packing.vision_memo import VisionMemo, trains_vision


class Inner(torch.nn.Module):
    """Asks itself for features as transformers' models do; video features come from image features, as Qwen3-VL's."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = torch.nn.Linear(2, 2)
        self.language_model = torch.nn.Linear(2, 2)
        self.calls = 0

    def get_image_features(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None) -> Any:
        self.calls += 1
        if not torch.isfinite(pixel_values).all():
            raise RuntimeError("broken")
        states = self.tower(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=(states[:1], states[1:]))

    def get_video_features(self, pixel_values_videos: torch.Tensor) -> Any:
        return self.get_image_features(pixel_values_videos)

    def forward(self, pixel_values: torch.Tensor | None = None, videos: torch.Tensor | None = None) -> torch.Tensor:
        total = torch.zeros(1, 2)
        if pixel_values is not None:
            total = total + torch.cat(self.get_image_features(pixel_values, image_grid_thw=None).pooler_output).sum(0)
        if videos is not None:
            total = total + 2 * torch.cat(self.get_video_features(videos).pooler_output).sum(0)
        return self.language_model(total)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Inner()
        self.lm_head = torch.nn.Linear(2, 3)
        self.model.tower.requires_grad_(False)

    def get_decoder(self) -> torch.nn.Module:
        return self.model.language_model

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        return self.model.get_image_features(pixel_values)

    def forward(self, **inputs: Any) -> torch.Tensor:
        return self.lm_head(self.model(**inputs))


PIXELS = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
OTHERS = PIXELS + 1


def gradients(model: Model, memo: VisionMemo | None, key: Any = 0) -> dict[str, torch.Tensor]:
    model.zero_grad()
    if memo is None:
        model(pixel_values=PIXELS).sum().backward()
    else:
        with memo.of(model, key):
            output = model(pixel_values=PIXELS)
        output.sum().backward()
    return {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


def test_the_tower_runs_once_and_gradients_are_the_same():
    """First without gradients, as the old policy's pass; then twice with them, backward included."""
    model, memo = Model(), VisionMemo()
    expected = gradients(model, None)
    with torch.no_grad(), memo.of(model, 0):
        assert torch.equal(model(pixel_values=PIXELS), model(pixel_values=PIXELS))
    for _ in range(2):
        found = gradients(model, memo)
        assert found.keys() == expected.keys() and len(found) == 4
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert model.model.calls == 2  # one for `expected`


def test_a_first_pass_with_gradients_leaves_no_graph():
    model, memo = Model(), VisionMemo()
    first = gradients(model, memo)
    assert all(torch.equal(gradients(model, memo)[name], first[name]) for name in first)
    remembered = next(iter(memo._remembered.values())).features
    assert all(not feature.requires_grad for feature in remembered.pooler_output)
    assert not hasattr(remembered, "last_hidden_state")


def test_packs_are_told_apart_and_forgotten():
    model, memo = Model(), VisionMemo()
    with torch.no_grad():
        plain = [model(pixel_values=pixels) for pixels in (PIXELS, OTHERS)]
        for _ in range(2):
            for key, pixels in enumerate((PIXELS, OTHERS)):
                with memo.of(model, ("pack", key)):
                    assert torch.equal(model(pixel_values=pixels), plain[key])
    assert model.model.calls == 4 and len(memo) == 2
    memo.forget()
    assert len(memo) == 0
    with torch.no_grad(), memo.of(model, ("pack", 0)):
        assert torch.equal(model(pixel_values=OTHERS), plain[1])


def test_videos_are_remembered_beside_images():
    model, memo = Model(), VisionMemo()
    with torch.no_grad():
        plain = model(pixel_values=PIXELS, videos=OTHERS)
        for _ in range(3):
            with memo.of(model, 0):
                assert torch.equal(model(pixel_values=PIXELS, videos=OTHERS), plain)
    assert model.model.calls == 4 and len(memo) == 2


@pytest.mark.parametrize("other", [OTHERS, PIXELS[:1], PIXELS.double(), PIXELS.repeat(2, 1)])
def test_other_images_under_the_same_key_are_refused(other):
    model, memo = Model(), VisionMemo()
    with torch.no_grad(), memo.of(model, "pack"):
        model(pixel_values=PIXELS)
        with pytest.raises(AssertionError, match=r"pack.*other images"):
            model(pixel_values=other)


def test_grids_are_compared_too():
    inner, memo = Inner().requires_grad_(False), VisionMemo()
    features = memo._standing_in(inner.get_image_features, (0, "get_image_features"))
    features(PIXELS, torch.tensor([[1, 2, 4]]))
    features(PIXELS, torch.tensor([[1, 2, 4]]))
    assert inner.calls == 1
    with pytest.raises(AssertionError, match="other images"):
        features(PIXELS, torch.tensor([[1, 4, 2]]))
    with pytest.raises(AssertionError, match="other images"):
        features(PIXELS)


def test_large_images_are_compared_all_over():
    """One value in a hundred differs."""
    inner, memo = Inner().requires_grad_(False), VisionMemo()
    features = memo._standing_in(inner.get_image_features, (0, "get_image_features"))
    pixels = torch.zeros(20_000, 2)
    features(pixels)
    pixels[::50] = 1.0
    with pytest.raises(AssertionError, match="other images"):
        features(pixels)


def test_attributes_are_as_before_whatever_happens():
    model, memo = Model(), VisionMemo()

    def patched(pixel_values: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(pooler_output=(pixel_values * 0,))

    model.model.get_image_features = patched
    before = dict(vars(model.model))
    with memo.of(model, 0):
        assert vars(model.model).keys() - before.keys() == {"get_video_features"}
        assert torch.equal(model(pixel_values=PIXELS), model(pixel_values=PIXELS))
    assert vars(model.model) == before
    del model.model.get_image_features
    with pytest.raises(RuntimeError, match="broken"), memo.of(model, 1):
        model(pixel_values=PIXELS * torch.inf)
    assert not {"get_image_features", "get_video_features"} & vars(model.model).keys()
    assert len(memo) == 1
    calls = model.model.calls
    with memo.of(model, 1):
        model(pixel_values=PIXELS)
    assert model.model.calls == calls + 1


def test_what_is_trained_outside_of_the_text_model_is_vision():
    model = Model()
    assert not trains_vision(model)
    model.model.tower.bias.requires_grad_(True)
    assert trains_vision(model)
    with pytest.raises(AssertionError, match="trained"), VisionMemo().of(model, 0):
        pass
    assert not trains_vision(Model().requires_grad_(False))


def test_a_text_model_is_left_alone():
    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(2, 2)
            self.lm_head = torch.nn.Linear(2, 3)

        get_output_embeddings = Model.get_output_embeddings

        def get_decoder(self) -> torch.nn.Module:
            return self.model

    model, memo = Text(), VisionMemo()
    assert not trains_vision(model)
    with memo.of(model, 0):
        assert not {"get_image_features", "get_video_features"} & (vars(model.model).keys() | vars(model).keys())


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_data_parallel(process_group):
    model, memo = Model(), VisionMemo()
    expected = gradients(model, None)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        model.zero_grad()
        with memo.of(model, 0):
            wrapped(pixel_values=PIXELS).sum().backward()
        for name, gradient in expected.items():
            torch.testing.assert_close(model.get_parameter(name).grad, gradient)
    assert model.model.calls == 2
