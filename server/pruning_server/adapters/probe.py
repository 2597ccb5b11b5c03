"""Asks a worker process, in the background, what this server can do: the server itself never imports torch."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec

from pruning_server.adapters.executor import WORKER_COMMAND
from pruning_server.adapters.process import Child, child_environment
from pruning_server.errors import Reason, UnavailableError
from pruning_server.jobs.ports import Clock
from pruning_server.jobs.probe import Probe
from pruning_server.spec.base import from_json

READ_SECONDS = 0.1
DRAIN_SECONDS = 1.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024
BACKOFF_SECONDS = (1.0, 5.0, 30.0, 120.0)

_log = logging.getLogger(__name__)


class WorkerProbe:
    """Runs `python -m pruning_server.worker probe` until it has answered once; the server serves meanwhile.

    Args:
        deadline_seconds: how long one attempt may take (importing torch is slow on a cold disk).
        backoff_seconds: pauses after failures; the last one repeats.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        deadline_seconds: float = 180.0,
        backoff_seconds: tuple[float, ...] = BACKOFF_SECONDS,
        command: tuple[str, ...] = WORKER_COMMAND,
    ) -> None:
        self._clock = clock
        self._deadline_seconds = deadline_seconds
        self._backoff_seconds = backoff_seconds
        self._command = command
        self._changed = threading.Condition()
        self._answer: Probe | None = None
        self._failure: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="probe", daemon=True)

    def start(self) -> None:
        """Starts asking, in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Stops asking; a worker that is being asked is killed."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def get(self, timeout_seconds: float) -> Probe:
        """Returns the answer, waiting for it for at most `timeout_seconds`; does not wait for a new attempt.

        Raises:
            UnavailableError: INTERNAL while it is not there yet, WORKER_NOT_INSTALLED after a failed attempt.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._answer is not None or self._failure is not None, timeout_seconds)
            if self._answer is not None:
                return self._answer
            if self._failure is not None:
                raise UnavailableError(Reason.WORKER_NOT_INSTALLED, self._failure)
        raise UnavailableError(Reason.INTERNAL, "the server is starting and does not know its devices yet; try again")

    def _loop(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            answer, failure = self._attempt()
            if self._stopping.is_set():
                return
            with self._changed:
                self._answer, self._failure = answer, failure
                self._changed.notify_all()
            if answer is not None:
                devices = ", ".join(device.name for device in answer.devices)
                _log.info("workers run torch %s on %s", answer.torch_version, devices)
                return
            self._stopping.wait(self._backoff_seconds[min(failures, len(self._backoff_seconds) - 1)])
            failures += 1

    def _attempt(self) -> tuple[Probe | None, str | None]:
        """Asks once; returns the answer or what to tell callers."""
        folder = Path("/")
        environment = child_environment(home=folder, threads=1, cuda_devices=None)
        try:
            child = Child(
                [*self._command, "probe"],
                folder=folder,
                environment=environment,
                stdout_limit_bytes=MAX_ANSWER_BYTES,
            )
        except OSError as error:
            return None, self._explain(f"it could not be started: {error.strerror}", "")
        with child:
            deadline = self._clock.monotonic() + self._deadline_seconds
            while not child.has_exited():
                child.read(READ_SECONDS)
                if self._stopping.is_set():
                    return None, None
                if self._clock.monotonic() > deadline:
                    return None, self._explain(f"it took longer than {self._deadline_seconds:g} s", child.stderr.text())
            child.drain(DRAIN_SECONDS)
            status = child.finish()
            if status.code == 0:
                try:
                    return from_json(_last_line(child.stdout.raw()), Probe), None
                except msgspec.DecodeError as error:
                    return None, self._explain(f"its answer cannot be read: {error}", child.stderr.text())
            how = status.signal_name or f"exit code {status.code}"
            return None, self._explain(f"{how}: {child.stderr.last_line()}", child.stderr.text())

    def _explain(self, why: str, stderr: str) -> str:
        _log.error("the probe of the workers failed (%s); the end of what it wrote to stderr:\n%s", why, stderr)
        return (
            f"this server cannot run jobs: asking a worker what it can do failed ({why}). Install"
            " 'pruning-service[server]' with torch where the server runs; it keeps trying"
        )


def _last_line(output: bytes) -> bytes:
    """Libraries may print while they are imported; the answer is the last line."""
    lines = output.strip().splitlines()
    return lines[-1] if lines else b""
