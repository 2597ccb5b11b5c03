"""At most one holder per key, without waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Exclusive:
    """Keys that somebody holds now; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[str] = set()

    @contextmanager
    def attempt(self, key: str) -> Iterator[bool]:
        """Holds `key` for the block and yields True; yields False if somebody else holds it."""
        with self._lock:
            entered = key not in self._held
            self._held.add(key)
        try:
            yield entered
        finally:
            if entered:
                with self._lock:
                    self._held.discard(key)

    def is_held(self, key: str) -> bool:
        """Whether somebody holds `key`."""
        with self._lock:
            return key in self._held
