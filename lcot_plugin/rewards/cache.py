"""A dictionary that forgets what was used longest ago; the verifier remembers verdicts in it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """At most `max_entries` values, whose keys say together at most `max_chars` characters. Safe from threads."""

    def __init__(self, max_entries: int, max_chars: int) -> None:
        self.max_entries = max_entries
        self.max_chars = max_chars
        self.num_chars = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """The value of `key`, None where it is not (or no longer) known."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Key, value: Value, num_chars: int) -> None:
        """Remember `value`; `num_chars` is the size of `key`."""
        with self._lock:
            _, replaced = self._entries.pop(key, (None, 0))
            self._entries[key] = (value, num_chars)
            self.num_chars += num_chars - replaced
            while len(self._entries) > self.max_entries or self.num_chars > self.max_chars:
                _, (_, dropped) = self._entries.popitem(last=False)
                self.num_chars -= dropped
