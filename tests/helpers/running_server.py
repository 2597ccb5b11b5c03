"""A real server process on free ports of 127.0.0.1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from helpers import sandboxing

MODULE = ("-m", "pruning_server")


class RunningServer:
    """Starts `python -m pruning_server` on a data folder; a context manager that stops it.

    `program`: what Python runs instead of `-m pruning_server`.
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        start_timeout_seconds: float = 30.0,
        program: tuple[str, ...] = MODULE,
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self._flags = flags
        self._program = program
        self._start_timeout_seconds = start_timeout_seconds
        self.address = ""
        self.metrics_address = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Starts the process and waits for its ready line."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PRUNING_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, *self._program, "--data-dir", str(self.data_dir),
                    "--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0", *self._sandbox_flags(),
                    *self._flags,
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment,
            )  # fmt: skip
        assert self.process.stdout is not None
        watchdog = threading.Timer(self._start_timeout_seconds, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            self.process.wait()
            raise AssertionError(f"the server did not start:\n{self.log.read_text()}")
        ready = json.loads(line)
        self.address, self.metrics_address = ready["address"], ready["metrics_address"]
        return self

    def _sandbox_flags(self) -> tuple[str, ...]:
        """Inside the sandbox wherever there is one; stand-ins for workers cannot be put there."""
        return sandboxing.flags() if self._program == MODULE else ("--insecure-no-sandbox",)

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """Kills it as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Asks it to stop and returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def rss_bytes(self) -> int:
        """Resident memory of the server process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
