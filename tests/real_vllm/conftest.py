import os

import pytest


@pytest.fixture(scope="session")
def vllm_python() -> str:
    python = os.environ.get("LCOT_VLLM_PYTHON")
    if not python:
        pytest.fail("LCOT_VLLM_PYTHON must name the Python of vLLM's environment: `make test-vllm` installs one.")
    return python
