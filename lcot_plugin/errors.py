"""The errors a user can meet; each message names the file, the record and what to do."""

from __future__ import annotations


class LcotError(ValueError):
    """Base of every error that the user can mend."""


class ArgumentError(LcotError):
    """A YAML key or a combination of keys that cannot work."""


class DataError(LcotError):
    """A data set record that cannot be used."""


class RewardError(LcotError):
    """An unknown reward, or a reward function that failed."""


class UnsupportedVersionError(RuntimeError):
    """A LLaMA-Factory release whose internals this plugin has not been tested with."""
