"""4-bit weights on the CPU can be trained after a pass in eval mode."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs `pip install bitsandbytes`")
@pytest.mark.parametrize("bias", [False, True])
def test_a_pass_in_eval_mode_changes_no_gradient(bias: bool) -> None:
    import bitsandbytes
    from llamafactory.extras.constants import QuantizationMethod
    from llamafactory.model.model_utils.quantization import configure_quantization

    model_args = SimpleNamespace(
        quantization_bit=4,
        quantization_method=QuantizationMethod.BNB,
        quantization_type="nf4",
        quantization_device_map=None,
        double_quantization=True,
        compute_dtype=torch.float32,
        export_quantization_bit=None,
    )
    settings: dict[str, object] = {}
    configure_quantization(SimpleNamespace(), None, model_args, True, settings)
    assert settings["quantization_config"].load_in_4bit

    layer = bitsandbytes.nn.Linear4bit(128, 64, bias=bias, compute_dtype=torch.float32).requires_grad_(False).to("cpu")
    inputs = torch.randn(3, 128, requires_grad=True)
    layer(inputs).square().sum().backward()
    before, inputs.grad = inputs.grad, None
    with torch.no_grad():
        layer.eval()(inputs.detach())
    layer.train()(inputs).square().sum().backward()
    assert before is not None and before.any()
    assert inputs.grad is not None and torch.equal(inputs.grad, before)
