"""The training process of LLaMA Board: how it is started, followed, and what is said when it has ended.

In:  `llamafactory.webui.runner`. Out: its `Runner` with another `monitor` and `set_abort`, its `Popen` with one that
     keeps what the process writes to stderr in a file. Consumer: integration.webui, the seam of that module.
"""

from __future__ import annotations

from types import ModuleType


def apply(module: ModuleType) -> None:
    """Patches `module`, which is `llamafactory.webui.runner`."""
