"""The formats by name, and what every format is made of.

In:  a record of a data set (a dict) and the user's `columns` of dataset_info.json (role -> column name).
Out: RawRecord, or RecordError(MALFORMED) that says which column has what.

A format lists, for every role it reads, the columns that may play it; `formatting: lcot_<name>` picks it. A user's own
is a function in a file, `formatting: path/to/file.py:cards`:

    def cards(fields: Fields) -> RawRecord:
        return RawRecord(turns=[Turn("user", fields.need("prompt")[1])], gold=fields.get("gold"))

    cards.roles = {"prompt": ("front",), "gold": ("back",)}

`roles` may be left out where `columns` of dataset_info.json need not name any; `fields.record` is the record itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

from lcot_plugin.errors import ArgumentError, DataError, RecordError
from lcot_plugin.types import RawRecord, RecordFault
from lcot_plugin.user_functions import function_in_file, split_file_spec

PREFIX = "lcot_"
"""What `formatting` of dataset_info.json has before a format's name."""

NO_OVERRIDES: Mapping[str, str | None] = {}


def malformed(detail: str) -> RecordError:
    return RecordError(RecordFault.MALFORMED, detail)


class Fields:
    """The roles of one record: which column plays which, the user's choice before the format's."""

    def __init__(
        self, record: Mapping[str, Any], roles: Mapping[str, tuple[str, ...]], columns: Mapping[str, str | None]
    ) -> None:
        self.record = record
        self._roles = roles
        self._columns = columns
        # A column that the user gave a role is no other role's default: `response: answer` leaves no gold answer.
        self._taken = {column for column in columns.values() if column} if columns else set()

    def column(self, role: str) -> str | None:
        """The column that plays `role`, None where none does or it is empty. A default one is then taken."""
        if role in self._columns:
            chosen = self._columns[role]
            if chosen is not None and not self._has(chosen):
                raise malformed(
                    f"column '{chosen}', which dataset_info.json names for '{role}', is not there; the record has "
                    f"{', '.join(self.record)}"
                )
            return chosen if chosen is not None and not is_empty(self.value(chosen)) else None
        for candidate in self._roles.get(role, ()):
            if candidate not in self.record and "." not in candidate:
                continue
            if candidate not in self._taken and not is_empty(self.value(candidate)):
                self._taken.add(candidate)
                return candidate
        return None

    def get(self, role: str) -> Any:
        """The value of `role`, None where it is absent or empty."""
        column = self.column(role)
        return None if column is None else self.value(column)

    def need(self, role: str) -> tuple[str, Any]:
        """Column and value of `role`.

        Raises:
            RecordError: MALFORMED where no column plays it.
        """
        column = self.column(role)
        if column is None:
            expected = self._columns.get(role) or " or ".join(self._roles[role])
            raise malformed(
                f"column '{expected}' ({role}) is absent or empty; the record has {', '.join(self.record) or 'nothing'}"
            )
        return column, self.value(column)

    def value(self, column: str) -> Any:
        """A column's value; `reward_model.ground_truth` looks inside a nested one. None where it is absent."""
        if column in self.record or "." not in column:
            return self.record.get(column)
        value: Any = self.record
        for part in column.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def _has(self, column: str) -> bool:
        return column in self.record or column.split(".")[0] in self.record


_CONTAINERS = (str, list, tuple, dict, bytes)


def is_empty(value: Any) -> bool:
    """None, and a text or container without content; 0 and False are answers."""
    return value is None or (isinstance(value, _CONTAINERS) and not value)


@dataclass(frozen=True)
class Format:
    """One schema."""

    name: str
    """`problem` for `formatting: lcot_problem`; `path/to/file.py:function` of a user's own."""
    summary: str
    """The schema in a few words, for listings and errors."""
    roles: Mapping[str, tuple[str, ...]] = field(repr=False)
    """Role -> columns that may play it, in order of preference; dataset_info.json may name others for these roles."""
    build: Callable[[Fields], RawRecord] = field(repr=False)

    @property
    def formatting(self) -> str:
        """What dataset_info.json has to say for it."""
        return self.name if split_file_spec(self.name) else PREFIX + self.name

    def read(self, record: Mapping[str, Any], columns: Mapping[str, str | None] = NO_OVERRIDES) -> RawRecord:
        """One record.

        Args:
            record: as the file or the hub has it.
            columns: role -> column from dataset_info.json; a role given as null is not read.

        Raises:
            RecordError: MALFORMED, with the column, what it has and what is expected.
            DataError: for a role that this format does not have, which is a fault of dataset_info.json.
        """
        if columns and not columns.keys() <= self.roles.keys():
            unknown = ", ".join(sorted(columns.keys() - self.roles.keys()))
            raise DataError(
                f"columns of dataset_info.json name {unknown}, which {self.formatting} does not read: it reads "
                f"{', '.join(self.roles) or 'none'}."
            )
        return self.build(Fields(record, self.roles, columns))


_FORMATS: dict[str, Format] = {}


def register_format(new: Format) -> Format:
    """Makes `formatting: lcot_<name>` known; returns the format.

    Raises:
        ArgumentError: where the name is taken.
    """
    if new.name in _FORMATS or new.name == "auto":
        raise ArgumentError(f"The data format '{new.name}' exists already: choose another name.")
    _FORMATS[new.name] = new
    return new


def unregister_format(name: str) -> None:
    """Forgets a format; for tests.

    Raises:
        KeyError: where there is none of that name.
    """
    del _FORMATS[name]


def get_format(name: str) -> Format:
    """The format of that name, with or without `lcot_`, or of `path/to/file.py:function`.

    Raises:
        DataError: where there is none, with those that are; where the file is bad.
    """
    if in_file := split_file_spec(name):
        return _format_in_file(name, *in_file)
    found = _FORMATS.get(name.removeprefix(PREFIX))
    if found is None:
        known = ["auto", *_FORMATS]
        near = get_close_matches(name.removeprefix(PREFIX), known, 1)
        hint = f"did you mean {PREFIX}{near[0]}? " if near else ""
        raise DataError(
            f"formatting: there is no {PREFIX}{name.removeprefix(PREFIX)}: {hint}There are "
            f"{', '.join(PREFIX + known_name for known_name in known)}, or a function of yours as "
            "path/to/file.py:function."
        )
    return found


def _format_in_file(spec: str, path: Path, name: str) -> Format:
    function = function_in_file(path, name, "format", DataError)

    @wraps(function)
    def build(fields: Fields) -> RawRecord:
        try:
            raw = function(fields)
        except RecordError:
            raise
        except Exception as error:  # of one record, as of any other format's: the rest of the set may be read
            raise malformed(f"{spec} raised {type(error).__name__}: {error}") from error
        if not isinstance(raw, RawRecord):
            raise DataError(f"{spec} returned {type(raw).__name__}; return a lcot_plugin.types.RawRecord.")
        return raw

    summary = " ".join((function.__doc__ or "").split("\n\n")[0].split())
    return Format(spec, summary, getattr(function, "roles", {}), build)


def format_names() -> list[str]:
    """All formats, in the order of their registration."""
    return list(_FORMATS)
