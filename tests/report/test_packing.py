from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lcot_plugin.report.packing import plot_packing


@pytest.mark.parametrize(("num_micro_steps", "num_ranks", "num_examples"), [(1, 1, 1), (3, 8, 100), (500, 2, 4000)])
def test_any_plan_is_drawn(num_micro_steps: int, num_ranks: int, num_examples: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 900, num_examples)
    tokens = generator.integers(500, 1000, num_micro_steps * num_ranks)
    costs = 1 + generator.random((num_micro_steps, num_ranks))
    plot_packing(lengths, tokens, costs, 1000, tmp_path / "packing.png")
    picture = Image.open(tmp_path / "packing.png")
    assert picture.width > 1000
    assert len(np.unique(np.asarray(picture.convert("L")))) > 20
