"""Inspects a model in a process of its own: whatever the model does to it, the server sees an answer or a death."""

from __future__ import annotations

import errno
import logging
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore

import msgspec

from pruning_server.adapters.executor import WORKER_COMMAND
from pruning_server.adapters.exits import ExitCause, classify, clean_text
from pruning_server.adapters.process import Child, child_environment
from pruning_server.adapters.usage import Allowance, Excess, Resource, Watchdog, disk_allowance
from pruning_server.errors import (
    CapacityError,
    FieldViolation,
    InvalidArtifactError,
    JobFailureError,
    PreconditionError,
    Reason,
    ServiceError,
    UnavailableError,
)
from pruning_server.jobs import inspection as layout
from pruning_server.jobs.inspection import InspectionAnswer, InspectionTask, cancelled_error, refusal_error
from pruning_server.jobs.ports import ArtifactStore, CancelToken, Clock, Gate
from pruning_server.sandbox.policy import Policy
from pruning_server.spec.artifacts import ArtifactKind, DatasetSummary
from pruning_server.spec.base import from_json, to_json
from pruning_server.spec.inspection import Inspection, InspectionRequest
from pruning_server.spec.request import ArtifactRef

READ_SECONDS = 0.1
DRAIN_SECONDS = 1.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_TEXT_CHARACTERS = 1000

_NOT_INSTALLED = ("No module named 'torch'", "No module named 'numpy'", "No module named pruning_server")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InspectionLimits:
    """Bounds of every inspection.

    Attributes:
        memory_bytes: private memory of the process.
        deadline_seconds: from its start to its end; importing torch is part of it.
        concurrency: how many run at a time; others wait as long as one may take.
        threads: of one process.
    """

    memory_bytes: int
    deadline_seconds: float = 120.0
    concurrency: int = 1
    threads: int = 1


class LocalInspector:
    """One process and one folder under `root` per inspection, on this machine."""

    def __init__(
        self,
        *,
        root: Path,
        gate: Gate,
        artifacts: ArtifactStore,
        clock: Clock,
        limits: InspectionLimits,
        command: tuple[str, ...] = WORKER_COMMAND,
        is_sandboxed: bool = False,
    ) -> None:
        self._root = root
        self._gate = gate
        self._artifacts = artifacts
        self._clock = clock
        self._limits = limits
        self._command = command
        self._is_sandboxed = is_sandboxed
        self._slots = BoundedSemaphore(limits.concurrency)

    def inspect(self, owner: str, request: InspectionRequest, cancelled: CancelToken) -> Inspection:
        """Runs the process over re-packed copies of the files; raises as the port says."""
        with self._slot(cancelled), self._folder() as folder:
            try:
                self._fill(folder, owner, request, cancelled)
                return self._ask(folder, cancelled)
            except OSError as error:
                raise _of_disk(error) from error

    @contextmanager
    def _slot(self, cancelled: CancelToken) -> Iterator[None]:
        """Waits for its turn, for as long as one inspection may take."""
        deadline = self._clock.monotonic() + self._limits.deadline_seconds
        while not self._slots.acquire(timeout=READ_SECONDS):
            if cancelled.is_set():
                raise cancelled_error()
            if self._clock.monotonic() > deadline:
                text = "the server is busy inspecting other models; try again"
                raise CapacityError(Reason.QUEUE_FULL, text, retry_after_seconds=10.0)
        try:
            yield
        finally:
            self._slots.release()

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        folder = self._root / uuid.uuid4().hex
        try:
            for part in ("in", "out"):
                (folder / part).mkdir(parents=True, mode=0o700)
            folder.chmod(0o700)
            yield folder
        except OSError as error:
            raise _of_disk(error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _fill(self, folder: Path, owner: str, request: InspectionRequest, cancelled: CancelToken) -> None:
        def pack(field: str, kind: ArtifactKind, ref: ArtifactRef, name: str) -> str:
            source = self._artifacts.path(self._artifacts.get(owner, ref.artifact_id).artifact_id)
            try:
                summary = self._gate.repack(kind, source, folder / name, cancelled=cancelled)
            except InvalidArtifactError as error:
                raise _of_field(field, error, ref) from error
            except JobFailureError as error:
                raise cancelled_error() from error
            if not isinstance(summary, DatasetSummary):
                return name
            (folder / name).rename(folder / f"{name}.{summary.container}")
            return f"{name}.{summary.container}"

        samples = request.samples
        task = InspectionTask(
            model=pack("model", ArtifactKind.TORCHSCRIPT, request.model, layout.MODEL_FILE),
            samples=None if samples is None else pack("samples", ArtifactKind.DATASET, samples, layout.SAMPLES_STEM),
            inputs=request.inputs,
            arguments=request.arguments,
            threads=self._limits.threads,
            dynamic_axes=request.dynamic_axes,
        )
        (folder / layout.TASK_FILE).write_bytes(to_json(task))

    def _ask(self, folder: Path, cancelled: CancelToken) -> Inspection:
        limit_bytes = disk_allowance(folder)
        allowance = Allowance(memory_bytes=self._limits.memory_bytes, folder=folder, disk_bytes=limit_bytes)
        with self._start(folder, limit_bytes) as child:
            self._wait(child, Watchdog(child.pid, allowance), cancelled)
            status = child.finish()
            answer = _read(folder) if status.code == 0 else None
            if answer is not None and answer.inspection is not None:
                return answer.inspection
            if answer is not None and answer.refusal is not None:
                raise self._of_refusal(answer.refusal)
            raise self._death(child, classify(status, None, child.stderr.text()))

    def _start(self, folder: Path, file_bytes: int) -> Child:
        command = [*self._command, "inspect", str(folder), "--memory-bytes", str(self._limits.memory_bytes)]
        environment = child_environment(home=folder, threads=self._limits.threads, cuda_devices="")
        policy = Policy(write=(str(folder),), file_bytes=file_bytes) if self._is_sandboxed else None
        try:
            return Child(command, folder=folder, environment=environment, policy=policy)
        except OSError as error:
            _log.exception("the process of an inspection could not be started")
            text = f"the server cannot start a process to inspect the model ({error.strerror}); try again"
            raise UnavailableError(Reason.INTERNAL, text) from error

    def _wait(self, child: Child, watchdog: Watchdog, cancelled: CancelToken) -> None:
        deadline = self._clock.monotonic() + self._limits.deadline_seconds
        while not child.has_exited():
            child.read(READ_SECONDS)
            if cancelled.is_set():
                raise cancelled_error()
            if (excess := watchdog.excess()) is not None:
                raise self._of_excess(excess)
            if self._clock.monotonic() > deadline:
                raise PreconditionError(
                    Reason.DEADLINE_EXCEEDED,
                    f"inspecting the model took longer than {self._limits.deadline_seconds:g} s and was stopped; give"
                    " smaller inputs, or start the server with a higher --observe-timeout",
                )
        child.drain(DRAIN_SECONDS)

    def _of_excess(self, excess: Excess) -> ServiceError:
        told = {"limit": excess.resource.value}
        if excess.resource is Resource.MEMORY:
            return PreconditionError(Reason.WORKER_OUT_OF_MEMORY, self._memory_text(), metadata=told)
        text = f"the process that inspected the model took {excess} and was stopped"
        return PreconditionError(Reason.WORKER_EXCEPTION, text, metadata=told)

    def _of_refusal(self, refusal: layout.InspectionRefusal) -> ServiceError:
        """The process' own last word; memory and faults are not the request's to correct."""
        told = {clean_text(key, 100): clean_text(value, 300) for key, value in list(refusal.metadata.items())[:20]}
        text = clean_text(refusal.message, MAX_TEXT_CHARACTERS)
        if refusal.reason is Reason.WORKER_OUT_OF_MEMORY:
            return PreconditionError(refusal.reason, self._memory_text(), metadata=told)
        if refusal.reason is Reason.STORAGE_FULL:
            return CapacityError(refusal.reason, text)
        if refusal.reason is Reason.WORKER_EXCEPTION:
            return PreconditionError(refusal.reason, text, metadata=told)
        return refusal_error(msgspec.structs.replace(refusal, message=text, metadata=told))

    def _death(self, child: Child, cause: ExitCause) -> ServiceError:
        status, stderr, last = child.finish(), child.stderr.text(), child.stderr.last_line()
        _log.warning(
            "the process of an inspection died (%s, code %d); the end of what it wrote to stderr:\n%s",
            cause.value,
            status.code,
            stderr,
        )
        if any(sign in stderr for sign in _NOT_INSTALLED):
            return UnavailableError(
                Reason.WORKER_NOT_INSTALLED,
                "the server cannot inspect models, since its installation is incomplete; install"
                " 'pruning-service[server]' where it runs",
            )
        metadata = {"exit_cause": cause.value} | ({"signal": status.signal_name} if status.signal_name else {})
        match cause:
            case ExitCause.OOM:
                return PreconditionError(Reason.WORKER_OUT_OF_MEMORY, self._memory_text(), metadata=metadata)
            case ExitCause.SIGNAL:
                text = (
                    f"the process that inspected the model was ended by {status.signal_name}: native code crashed, most"
                    " often an operator of the model; check in plain torch that it runs on such inputs"
                )
                return PreconditionError(Reason.WORKER_SIGNAL, text, metadata=metadata)
            case ExitCause.EXCEPTION:
                detail = f" ({last})" if last else ""
                text = f"the process that inspected the model broke{detail}; the server's log has the details"
                return PreconditionError(Reason.WORKER_EXCEPTION, text, metadata=metadata)
            case ExitCause.LOST if status.signal_name == "SIGKILL":
                text = "the process that inspected the model was killed from outside; try again"
                return PreconditionError(Reason.WORKER_LOST, text, metadata=metadata)
            case _:
                text = "the process that inspected the model ended without an answer; the server's log has the details"
                return PreconditionError(Reason.WORKER_LOST, text, metadata=metadata)

    def _memory_text(self) -> str:
        return (
            f"inspecting the model took more than the {self._limits.memory_bytes / 2**30:.1f} GiB of memory that it may"
            " use; give smaller inputs, or start the server with a higher --memory-per-job"
        )


def _read(folder: Path) -> InspectionAnswer | None:
    """What the process left; None where that is no answer. It runs a caller's model, so its files are not trusted."""
    path = folder / layout.ANSWER_FILE
    try:
        if not stat.S_ISDIR(path.parent.lstat().st_mode):
            return None
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size > MAX_ANSWER_BYTES:
            return None
        return from_json(path.read_bytes(), InspectionAnswer)
    except (OSError, msgspec.DecodeError):
        return None


def _of_field(field: str, error: InvalidArtifactError, ref: ArtifactRef) -> InvalidArtifactError:
    return InvalidArtifactError(
        error.reason,
        f"{field}: {error.message}",
        violations=(FieldViolation(field, error.message),),
        metadata={"artifact_id": ref.artifact_id, **error.metadata},
    )


def _of_disk(error: OSError) -> ServiceError:
    _log.error("the server's own files failed in an inspection", exc_info=error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return CapacityError(Reason.STORAGE_FULL, "the server's disk is full; try again later")
    text = f"the server could not read or write its files ({error.strerror}); its log has the details"
    return UnavailableError(Reason.INTERNAL, text)
