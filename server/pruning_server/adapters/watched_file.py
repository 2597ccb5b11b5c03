"""Files that an operator may replace while the server runs: read again when they have changed, at most once a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from pruning_server.errors import ServiceError
from pruning_server.jobs.ports import Clock

T = TypeVar("T")
CHECK_SECONDS = 1.0

_log = logging.getLogger(__name__)


class WatchedFiles(Generic[T]):
    """What some files together mean, as of at most a second ago.

    Files that do not fit, e.g. because only the first of two was replaced by now, change nothing: what was read last
    stays, one line in the log says so, and they are tried again when they change again.

    Args:
        paths: whose change counts; one that is replaced by renaming counts as well.
        read: what they mean; a ServiceError or OSError says what is wrong with them, without anything secret.
        clock: when to look.

    Raises:
        ServiceError, OSError: what `read` raises at first.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], clock: Clock) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        # Before reading: a change in between is seen at the next look.
        self._signature = self._look()
        self._value = read()
        self._looked = clock.monotonic()

    def current(self) -> T:
        """Returns the newest meaning that fits."""
        if self._clock.monotonic() - self._looked < CHECK_SECONDS:
            return self._value
        with self._lock:
            if self._clock.monotonic() - self._looked < CHECK_SECONDS:
                return self._value
            self._looked = self._clock.monotonic()
            signature = self._look()
            if signature != self._signature:
                self._signature = signature
                self._reload()
            return self._value

    def _reload(self) -> None:
        names = ", ".join(str(path) for path in self._paths)
        try:
            self._value = self._read()
        except (OSError, ServiceError) as error:
            why = error.message if isinstance(error, ServiceError) else error.strerror
            _log.error("%s changed and cannot be used, what was read before stays in force: %s", names, why)
        else:
            _log.info("%s changed and was read again", names)

    def _look(self) -> tuple[tuple[int, int, int, int] | None, ...]:
        return tuple(_signature(path) for path in self._paths)


def _signature(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
