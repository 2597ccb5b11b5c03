"""How much disk the server's data take."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

# The unit of st_blocks, whatever the file system's own block is.
_BLOCK_BYTES = 512


class StorageUsage:
    """Sizes of the data folder's parts, measured at most once per `max_age_seconds`.

    Args:
        parts: kind (`artifacts`, `uploads`, `jobs`, `database`) to the files and folders that belong to it; those that
            do not exist count 0.
        root: a path on the file system whose free space is reported.
        max_age_seconds: how old a measurement may be; a folder of many files takes a while to walk.
        monotonic: a clock in seconds.
    """

    def __init__(
        self,
        parts: Mapping[str, tuple[Path, ...]],
        root: Path,
        *,
        max_age_seconds: float = 30.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = dict(parts)
        self._root = root
        self._max_age_seconds = max_age_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._measured: tuple[float, Mapping[str, int]] | None = None

    def bytes_by_kind(self) -> Mapping[str, int]:
        """Returns kind to bytes on disk (allocated blocks, so that sparse files count what they take)."""
        with self._lock:
            now = self._monotonic()
            if self._measured is None or now - self._measured[0] > self._max_age_seconds:
                self._measured = now, {kind: sum(map(_bytes_of, paths)) for kind, paths in self._parts.items()}
            return self._measured[1]

    def free_bytes(self) -> int:
        """Returns the bytes that may still be written."""
        return shutil.disk_usage(self._root).free


def _bytes_of(path: Path) -> int:
    """Allocated bytes of a file or folder, links not followed; what disappears meanwhile counts 0."""
    total, pending = 0, [os.fspath(path)]
    while pending:
        current = pending.pop()
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(current)
            total += status.st_blocks * _BLOCK_BYTES
            if stat.S_ISDIR(status.st_mode):
                with os.scandir(current) as entries:
                    pending.extend(entry.path for entry in entries)
    return total
