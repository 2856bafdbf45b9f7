"""Reloads all weights of a vLLM worker: `vllm serve --worker-extension-cls lcot_worker.Reloads`, then /collective_rpc.

vLLM 0.32's own `reload_weights` leaves an output layer behind that is tied to the embeddings, on the CPU: it multiplies
by a packed copy, made when the model was loaded, and a checkpoint with tied weights holds nothing that would renew it.
"""

from __future__ import annotations

from typing import Any


class Reloads:
    """Joins the worker's base classes."""

    def lcot_reload_weights(self: Any, weights_path: str) -> None:
        """weights_path: a folder of safetensors under the names of the model's checkpoint."""
        self.reload_weights(weights_path=weights_path)
        for module in self.get_model().modules():
            if type(module).__name__ == "ParallelLMHead" and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)
