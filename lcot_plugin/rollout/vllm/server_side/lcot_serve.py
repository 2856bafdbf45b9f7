"""Starts vLLM's OpenAI-compatible server, whatever its distribution is called.

    python lcot_serve.py MODEL [ARGUMENT...]      as `vllm serve MODEL [ARGUMENT...]`

`vllm serve` asks for the version of a distribution named `vllm`, which the CPU builds are not.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from importlib.metadata import PackageNotFoundError, distribution


def main(arguments: list[str]) -> None:
    model, *rest = arguments
    try:
        distribution("vllm")
    except PackageNotFoundError:
        sys.argv = ["vllm", "--model", model, *rest]
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
        return
    sys.argv = ["vllm", "serve", model, *rest]
    importlib.import_module("vllm.entrypoints.cli.main").main()


if __name__ == "__main__":  # vLLM's worker processes import this file once more
    main(sys.argv[1:])
