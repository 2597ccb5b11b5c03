"""Notices a stream that neither moves nor ends, as after a cable was pulled."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import grpc

STALL_SECONDS = 120.0


class StallGuard:
    """Cancels a call that shows no sign of life for `limit_seconds`; a context manager around its use."""

    def __init__(self, call: grpc.RpcContext, limit_seconds: float = STALL_SECONDS) -> None:
        self.stalled = False
        self._call = call
        self._limit_seconds = limit_seconds
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-guard", daemon=True)

    def beat(self, limit_seconds: float | None = None) -> None:
        """Something moved; from now on the limit is `limit_seconds`, if given."""
        self._last = time.monotonic()
        self._limit_seconds = self._limit_seconds if limit_seconds is None else limit_seconds

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._limit_seconds / 4)):
            if time.monotonic() - self._last > self._limit_seconds:
                self.stalled = True
                self._call.cancel()
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
