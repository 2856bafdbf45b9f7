"""What torchrun runs, once per process, after an explicit start (`lcot train`, `python -m lcot_plugin train`).

LLaMA-Factory's launcher gives torchrun its own file, which knows nothing of lcot_plugin where no `.pth` is processed
(a `--target` folder on PYTHONPATH, a source tree). `cli.py` gives it this one, with the same arguments.
"""

import sys
from pathlib import Path

# torchrun puts this file's folder first on the path, where data.py and others would shadow top-level modules. The
# package root takes its place: a source tree that is only on the parent's path is then found here as well.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from lcot_plugin.activation import activate  # noqa: E402

activate()  # outside the guard: a spawned data-loader worker imports this file under another name

if __name__ == "__main__":
    from llamafactory.train.tuner import run_exp

    run_exp()
