"""Ends transfers and watches whose other side has gone quiet: each holds a thread, and an upload also its artifact."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stall:
    """One transfer or watch. Only time spent waiting for the other side counts; the server may take as long as it needs."""

    def __init__(self, monotonic: Callable[[], float], cancel: Callable[[], object]) -> None:
        self._monotonic = monotonic
        self._waiting_since: float | None = None
        self.cancel = cancel

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for the other side."""
        self._waiting_since = self._monotonic()
        try:
            yield
        finally:
            self._waiting_since = None

    def waited_seconds(self) -> float:
        """How long it has waited by now; 0 if it does not."""
        since = self._waiting_since
        return 0.0 if since is None else self._monotonic() - since


class StallWatch:
    """Cancels every transfer and watch that has waited for `limit_seconds`; one thread for all of them.

    Args:
        limit_seconds: how long the other side may be quiet.
        monotonic: a clock in seconds.
    """

    def __init__(self, limit_seconds: float, monotonic: Callable[[], float]) -> None:
        self._limit_seconds = limit_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._open: set[Stall] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="stalls", daemon=True)

    def start(self) -> None:
        """Looks at all transfers every so often, from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Stops looking."""
        self._stopping.set()

    @contextmanager
    def watch(self, cancel: Callable[[], object]) -> Iterator[Stall]:
        """Watches one transfer; `cancel` ends its call."""
        stall = Stall(self._monotonic, cancel)
        with self._lock:
            self._open.add(stall)
        try:
            yield stall
        finally:
            with self._lock:
                self._open.discard(stall)

    def _loop(self) -> None:
        while not self._stopping.wait(self._limit_seconds / 10):
            with self._lock:
                stalled = [stall for stall in self._open if stall.waited_seconds() >= self._limit_seconds]
            for stall in stalled:
                stall.cancel()
