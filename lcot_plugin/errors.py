"""The errors a user can meet; each message names the file, the record and what to do."""

from __future__ import annotations

from lcot_plugin.types import RecordFault


class LcotError(ValueError):
    """Base of every error that the user can mend."""


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


class UnsupportedVersionError(RuntimeError):
    """A LLaMA-Factory release whose internals this plugin has not been tested with."""
