"""Settings of the whole suite: no network, no display, the plugin active as in an installed environment."""

import os
import signal
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.pop("LCOT_PLUGIN", None)

from lcot_plugin import activation

# hypothesis would fail a test that a busy machine makes wait.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell starts what it puts into the background with SIGINT ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A source tree has no .pth. The finder must be there before the first test module imports llamafactory.
activation.activate()


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`twin(family)` is the folder of the family's tiny twin, built once in a test session; not to be written to."""
    from twins import build_twin  # imports transformers, which most tests do without

    root = tmp_path_factory.mktemp("twins")
    return lru_cache(lambda family: build_twin(family, root / family))
