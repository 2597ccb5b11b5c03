"""The pipe to the server: one JSON object per line on a file descriptor of its own, and the heartbeat. Torch-free.

stdout and stderr are never used for messages: a model can print.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from pruning_server.jobs.events import WorkerAlive, WorkerMessage
from pruning_server.spec.base import to_json
from pruning_server.worker.hygiene import EXIT_PARENT_GONE

HEARTBEAT_SECONDS = 2.0


class Channel:
    """Sends messages, whole and in order, from any thread; ends the process when nobody listens any more."""

    def __init__(self, fd: int, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        # A process that a model might start must not keep the pipe open.
        os.set_inheritable(fd, False)
        self._fd = fd
        self._lock = threading.Lock()
        self._heartbeat_seconds = heartbeat_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def send(self, message: WorkerMessage) -> None:
        """Writes one message."""
        line = memoryview(to_json(message) + b"\n")
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except BrokenPipeError:
                # The server is gone: nobody wants the result, and nobody would stop this process.
                os._exit(EXIT_PARENT_GONE)

    def __enter__(self) -> Self:
        self.send(WorkerAlive(rss_bytes=resident_bytes()))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stopped.wait(self._heartbeat_seconds):
            self.send(WorkerAlive(rss_bytes=resident_bytes()))


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
