"""The gate as a child process: whatever a hostile file does to it, the server only sees an answer or a death."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from pruning_server.adapters.process import Child, child_environment, python_command
from pruning_server.adapters.usage import Allowance, Watchdog, disk_allowance
from pruning_server.archive.answer import GateAnswer
from pruning_server.errors import (
    CapacityError,
    InvalidArtifactError,
    JobFailureError,
    Reason,
    UnavailableError,
)
from pruning_server.jobs.ports import CancelToken, Clock
from pruning_server.sandbox.policy import EXIT_NO_SANDBOX, Policy
from pruning_server.spec.artifacts import ArtifactKind, Summary
from pruning_server.spec.base import from_json

GATE_COMMAND = python_command("-m", "pruning_server.archive")
MAX_ANSWER_BYTES = 16 * 1024 * 1024
READ_SECONDS = 0.1
DRAIN_SECONDS = 1.0

_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_BROKEN_INSTALLATION = re.compile(r"ModuleNotFoundError|ImportError|No module named")
_DEATH_REASONS = {
    ArtifactKind.TORCHSCRIPT: Reason.MODEL_CORRUPT,
    ArtifactKind.LOSS: Reason.MODEL_CORRUPT,
    ArtifactKind.DATASET: Reason.DATASET_UNREADABLE,
    ArtifactKind.REPORT: Reason.MODEL_CORRUPT,
}

_log = logging.getLogger(__name__)


class GateProcess:
    """Runs `python -m pruning_server.archive` once per file, a few at a time.

    Args:
        clock: measures the deadline.
        deadline_seconds: how long one file may take.
        memory_bytes: how much memory one gate may use; None: no limit.
        concurrency: how many gates may run at a time; others wait as long as one may take.
        is_sandboxed: whether it sees the file, its destination's folder and nothing else.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        deadline_seconds: float = 120.0,
        memory_bytes: int | None = 1024 * 1024 * 1024,
        concurrency: int = 2,
        command: tuple[str, ...] = GATE_COMMAND,
        is_sandboxed: bool = False,
    ) -> None:
        self._clock = clock
        self._deadline_seconds = deadline_seconds
        self._memory_bytes = memory_bytes
        self._slots = threading.BoundedSemaphore(concurrency)
        self._command = command
        self._is_sandboxed = is_sandboxed

    def check(self, kind: ArtifactKind, source: Path) -> Summary:
        """Returns what the file holds.

        Raises:
            InvalidArtifactError: the gate refuses it, takes too long or dies of it.
            CapacityError: too many gates run already, or the disk is full.
        """
        return self._ask(kind, ["check", *self._options(kind), str(source)], Policy(read=(str(source),)), None)

    def repack(
        self, kind: ArtifactKind, source: Path, destination: Path, *, cancelled: CancelToken | None = None
    ) -> Summary:
        """Checks `source` and writes it anew, canonically, to `destination`.

        Raises:
            the same as `check`, and JobFailureError (CANCELLED) once `cancelled` is set.
        """
        folder = destination.parent
        policy = Policy(write=(str(folder),), read=(str(source),))
        if folder.is_dir():
            policy = replace(policy, file_bytes=disk_allowance(folder))
        arguments = ["repack", *self._options(kind), str(source), str(destination)]
        return self._ask(kind, arguments, policy, cancelled)

    def _options(self, kind: ArtifactKind) -> list[str]:
        memory = [] if self._memory_bytes is None else ["--memory-bytes", str(self._memory_bytes)]
        return ["--kind", kind.value, *memory]

    def _ask(self, kind: ArtifactKind, arguments: list[str], policy: Policy, cancelled: CancelToken | None) -> Summary:
        with self._slot(), self._start(arguments, policy) as child:
            self._wait(kind, child, cancelled)
            return self._answer(kind, child)

    def _start(self, arguments: list[str], policy: Policy) -> Child:
        folder = Path("/")
        try:
            return Child(
                [*self._command, *arguments],
                folder=folder,
                environment=child_environment(home=folder, threads=1, cuda_devices=""),
                stdout_limit_bytes=MAX_ANSWER_BYTES,
                policy=policy if self._is_sandboxed else None,
            )
        except OSError as error:
            _log.exception("the gate could not be started")
            message = f"the server cannot start a process to check the file ({error.strerror}); try again"
            raise UnavailableError(Reason.INTERNAL, message) from error

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=self._deadline_seconds):
            raise CapacityError(
                Reason.QUEUE_FULL, "the server is busy checking other files; try again", retry_after_seconds=10.0
            )
        try:
            yield
        finally:
            self._slots.release()

    def _wait(self, kind: ArtifactKind, child: Child, cancelled: CancelToken | None) -> None:
        deadline = self._clock.monotonic() + self._deadline_seconds
        watchdog = Watchdog(child.pid, Allowance(memory_bytes=self._memory_bytes))
        while not child.has_exited():
            child.read(READ_SECONDS)
            if cancelled is not None and cancelled.is_set():
                raise JobFailureError(Reason.CANCELLED, "The job was cancelled.")
            if (excess := watchdog.excess()) is not None:
                raise InvalidArtifactError(_DEATH_REASONS[kind], f"reading the file took {excess}; send a smaller one")
            if self._clock.monotonic() > deadline:
                raise InvalidArtifactError(
                    Reason.GATE_DEADLINE_EXCEEDED,
                    f"checking the file took longer than {self._deadline_seconds:g} s; send a smaller file, or one with"
                    " fewer entries, or start the server with a higher --gate-timeout",
                )
        child.drain(DRAIN_SECONDS)

    def _answer(self, kind: ArtifactKind, child: Child) -> Summary:
        status = child.finish()
        if status.code == 0 and child.stdout.total_bytes <= MAX_ANSWER_BYTES:
            try:
                answer = from_json(child.stdout.raw(), GateAnswer)
            except msgspec.DecodeError:
                answer = GateAnswer()
            if answer.refusal is not None:
                refusal = answer.refusal
                raise InvalidArtifactError(refusal.reason, refusal.message, metadata=refusal.metadata)
            if answer.summary is not None:
                return answer.summary
        raise self._death(kind, status.signal_name or f"exit code {status.code}", child)

    def _death(self, kind: ArtifactKind, how: str, child: Child) -> Exception:
        stderr = child.stderr.text()
        _log.warning("the gate died of a %s (%s); the end of what it wrote to stderr:\n%s", kind.value, how, stderr)
        if _DISK_FULL.search(stderr):
            return CapacityError(Reason.STORAGE_FULL, "the server's disk is full; try again later")
        if _BROKEN_INSTALLATION.search(stderr):
            return UnavailableError(
                Reason.WORKER_NOT_INSTALLED,
                "the server cannot check files, since its installation is incomplete; install 'pruning-service[server]'",
            )
        if child.finish().code == EXIT_NO_SANDBOX:
            text = "the server cannot check files, since it cannot put the process that reads them into its sandbox"
            return UnavailableError(Reason.INTERNAL, f"{text} ({child.stderr.last_line()})")
        limit = "" if self._memory_bytes is None else f" within {self._memory_bytes / 2**30:.1f} GiB of memory"
        return InvalidArtifactError(
            _DEATH_REASONS[kind],
            f"reading the file{limit} ended the reader ({how}), so the file is taken for damaged; save it again and check"
            " that it opens on your side",
            metadata={"gate_exit": how},
        )
