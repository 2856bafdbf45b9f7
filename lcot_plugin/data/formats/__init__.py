"""Formats: one record of any public data set to a RawRecord; `formatting: lcot_<name>` in dataset_info.json picks one.

Importing this registers the formats of `tables` and `chats`.
"""

from lcot_plugin.data.formats import chats, tables  # noqa: F401  they register their formats
from lcot_plugin.data.formats.recognise import Recognition, recognise
from lcot_plugin.data.formats.registry import (
    PREFIX,
    Fields,
    Format,
    format_names,
    get_format,
    malformed,
    register_format,
    unregister_format,
)

__all__ = [
    "PREFIX",
    "Fields",
    "Format",
    "Recognition",
    "format_names",
    "get_format",
    "malformed",
    "recognise",
    "register_format",
    "unregister_format",
]
