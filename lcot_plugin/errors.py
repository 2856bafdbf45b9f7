"""The errors a user can meet; each message names the file, the record and what to do."""

from __future__ import annotations

from lcot_plugin.types import RecordFault


class LcotError(ValueError):
    """Base of every error that the user can mend."""

    agreed: bool = False
    """Whether every process of the training raises an error for this one, so that what follows (a last checkpoint) can
    be done together. Set on the error itself; on errors that are not ours too."""


class ArgumentError(LcotError):
    """A YAML key or a combination of keys that cannot work."""


class DataError(LcotError):
    """A data set record that cannot be used."""


class RecordError(DataError):
    """One record that cannot be used, and why; the run's policy decides what becomes of it."""

    def __init__(self, fault: RecordFault, detail: str) -> None:
        super().__init__(f"{fault.value}: {detail}")
        self.fault = fault
        self.detail = detail


class RewardError(LcotError):
    """An unknown reward, or a reward function that failed."""


class RolloutError(LcotError):
    """A rollout server that cannot serve this run, or none that answers any more."""


class UnsupportedVersionError(RuntimeError):
    """A LLaMA-Factory release whose internals this plugin has not been tested with."""
