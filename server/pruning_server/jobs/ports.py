"""What the jobs room needs of the outside, as Protocols; `adapters/` fills them, contract tests hold every filling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from pruning_server.jobs.events import Event, EventPayload, WorkerMessage
from pruning_server.jobs.model import Failure, Job, JobState, Result
from pruning_server.jobs.probe import Probe
from pruning_server.spec.artifacts import ArtifactKind, Summary
from pruning_server.spec.base import Value
from pruning_server.spec.inspection import Inspection, InspectionRequest
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import PruningSpec


class Clock(Protocol):
    """Where time comes from; both in seconds."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


# --- Artifacts --------------------------------------------------------------------------------------------------------


class Artifact(Value, frozen=True, kw_only=True):
    """A stored file as the store knows it. ACTIVE when `committed_size_bytes` is whole and verified."""

    artifact_id: str
    owner: str
    kind: ArtifactKind
    sha256: str
    size_bytes: int
    committed_size_bytes: int
    active: bool
    display_name: str
    create_time: float
    expire_time: float


class UploadWriter(Protocol):
    """One upload in progress; at most one per artifact at a time."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Appends `data` at `offset`.

        Raises:
            OffsetError: `offset` is not where the upload stands.
            InvalidRequestError: more bytes than announced.
            CapacityError: the disk is full.
        """
        ...

    def finish(self) -> Artifact:
        """Verifies size and SHA-256, renames atomically, and returns the ACTIVE artifact.

        Raises:
            ChecksumError: the content is not what was announced; the upload starts again from 0.
        """
        ...

    def suspend(self) -> Artifact:
        """Makes what arrived durable and returns the artifact, still pending."""
        ...


class ArtifactStore(Protocol):
    """Content-addressed files, owned by principals."""

    def create(self, owner: str, kind: ArtifactKind, sha256: str, size_bytes: int, display_name: str) -> Artifact:
        """Announces a file; ACTIVE at once if this owner's bytes are stored already."""
        ...

    def open_upload(self, owner: str, artifact_id: str) -> AbstractContextManager[UploadWriter]:
        """Continues an upload; leaving the context suspends it unless it was finished."""
        ...

    def get(self, owner: str, artifact_id: str) -> Artifact:
        """Returns the artifact, or raises NotFoundError."""
        ...

    def list(
        self, owner: str, kind: ArtifactKind | None, page_size: int, page_token: str
    ) -> tuple[Sequence[Artifact], str]:
        """Returns a page, newest first, and the token of the next one (empty: none)."""
        ...

    def delete(self, owner: str, artifact_id: str) -> None:
        """Deletes it; PreconditionError while an unfinished job uses it."""
        ...

    def open_read(self, owner: str, artifact_id: str) -> BinaryIO:
        """Opens an ACTIVE artifact for reading."""
        ...

    def path(self, artifact_id: str) -> Path:
        """Where the bytes of an ACTIVE artifact lie, for reading by the gate."""
        ...

    def put_file(self, owner: str, kind: ArtifactKind, source: Path, display_name: str) -> Artifact:
        """Stores a finished file of ours, atomically, and returns it ACTIVE."""
        ...

    def summary(self, artifact_id: str) -> Summary | None:
        """What the gate found in it, if it was checked."""
        ...

    def put_summary(self, artifact_id: str, summary: Summary) -> None:
        """Remembers what the gate found."""
        ...

    def collect_garbage(self) -> int:
        """Deletes what no job needs after its time; returns the bytes freed."""
        ...


class Gate(Protocol):
    """Reads, checks and re-packs a file in a child process with a deadline."""

    def check(self, kind: ArtifactKind, source: Path) -> Summary:
        """Returns what the file holds, or raises InvalidArtifactError with what to change."""
        ...

    def repack(
        self, kind: ArtifactKind, source: Path, destination: Path, *, cancelled: CancelToken | None = None
    ) -> Summary:
        """Checks `source` and writes it anew, canonically, to `destination`; gives up once `cancelled` is set."""
        ...


class ProbeSource(Protocol):
    """Where the server learns what its workers can do."""

    def get(self, timeout_seconds: float) -> Probe:
        """Waits for the answer of the probe that was started with the server.

        Raises:
            UnavailableError: it is not there yet (or failed, and is being tried again).
        """
        ...


class Inspector(Protocol):
    """Inspects a model in a process of its own."""

    def inspect(self, owner: str, request: InspectionRequest, cancelled: CancelToken) -> Inspection:
        """Blocks until the process is gone, which is killed once `cancelled` is set.

        Raises:
            InvalidArtifactError: the gate refuses a file, or torch does not load the model.
            InvalidRequestError: the model does not run with these inputs, or some are needed; the violation says which.
            PreconditionError: the process broke, crashed, or ran out of memory or time over this model.
            CapacityError: too many inspections run already, or the disk is full.
            UnavailableError: no process can be started, or the inspection was cancelled.
        """
        ...


# --- Jobs -------------------------------------------------------------------------------------------------------------


class JobStore(Protocol):
    """Durable jobs and their numbered events; every method is one transaction."""

    def create(
        self,
        *,
        owner: str,
        request_id: str,
        spec: PruningSpec,
        labels: Mapping[str, str],
        device: str,
        max_attempts: int,
        queue_capacity: int,
        max_queued_per_owner: int | None = None,
    ) -> tuple[Job, bool]:
        """Queues a job and returns (job, created); the same request_id and spec returns the earlier one.

        Raises:
            AlreadyExistsError: the request_id came before, with another spec.
            CapacityError: the queue is full, or the owner's share of it.
        """
        ...

    def check_capacity(self, owner: str, queue_capacity: int, max_queued_per_owner: int | None) -> None:
        """Raises CapacityError where `create` would, as things are now; cheap."""
        ...

    def find_request(self, owner: str, request_id: str) -> Job | None:
        """Returns the job that this request_id made, if it is still stored."""
        ...

    def get(self, owner: str | None, job_id: str) -> Job:
        """Returns the job, or raises NotFoundError; owner None sees all."""
        ...

    def list(
        self,
        owner: str | None,
        states: frozenset[JobState],
        labels: Mapping[str, str],
        page_size: int,
        page_token: str,
    ) -> tuple[Sequence[Job], str]:
        """Returns a page, newest first, and the token of the next one (empty: none); owner None: of all."""
        ...

    def claim(
        self, free_devices: Sequence[str], lease_owner: str, max_running_per_owner: int | None = None
    ) -> tuple[Job, str] | None:
        """Moves the queued job whose turn it is and that a free device can serve to RUNNING, attempt + 1.

        Returns it and the device. Owners take turns: the one with the fewest running jobs first, then the one served
        longest ago; of an owner's jobs, each step of priority is worth 100 places in the order of submission. A job's `device` is `cpu`, `cuda` (any) or `cuda:N`; devices are named `cpu` or `cuda:N`.
        """
        ...

    def append_event(self, job_id: str, attempt: int, payload: EventPayload) -> Event | None:
        """Adds an event of a run; None (and nothing stored) once that run is over."""
        ...

    def request_cancel(self, owner: str | None, job_id: str) -> Job:
        """QUEUED -> CANCELLED, RUNNING -> CANCELLING; terminal and CANCELLING jobs stay as they are."""
        ...

    def succeed(self, job_id: str, attempt: int, result: Result) -> Job:
        """RUNNING -> SUCCEEDED; CANCELLING -> CANCELLED; a terminal state is never overwritten."""
        ...

    def fail(self, job_id: str, attempt: int, failure: Failure, *, retry: bool, result: Result | None = None) -> Job:
        """RUNNING -> QUEUED if `retry` and attempts are left, else FAILED; CANCELLING -> CANCELLED."""
        ...

    def release(self, job_id: str, attempt: int, failure: Failure) -> Job:
        """RUNNING -> QUEUED without spending an attempt (`max_attempts` grows by one); CANCELLING -> CANCELLED.

        For runs that the server itself ended, e.g. because it stops. Terminal and queued jobs stay as they are.
        """
        ...

    def fail_unservable(self, devices: Sequence[str], failure: Failure) -> Sequence[Job]:
        """QUEUED -> FAILED for every job that none of `devices` (`cpu`, `cuda:N`) can ever serve; returns them."""
        ...

    def recover(self, lease_owner: str) -> Sequence[Job]:
        """At start: settles every run of a dead server as `fail(..., WORKER_LOST, retry=True)` would; returns them."""
        ...

    def events_after(self, job_id: str, sequence: int, limit: int) -> Sequence[Event]:
        """Events with a number above `sequence`, in order, at most `limit`."""
        ...

    def delete(self, owner: str | None, job_id: str) -> None:
        """Deletes a terminal job and its events; PreconditionError while it is not terminal."""
        ...

    def delete_expired(self) -> int:
        """Deletes terminal jobs past their retention; returns how many."""
        ...

    def counts_by_state(self) -> Mapping[JobState, int]:
        """How many jobs are in each state; every state is a key."""
        ...

    def oldest_queued_time(self) -> float | None:
        """Creation time of the job that waits longest; None: none waits."""
        ...


class RunOutcome(Value, frozen=True, kw_only=True):
    """How a run ended: exactly one of `result` (files are in the store) and `failure`; a missed verdict has both."""

    result: Result | None
    failure: Failure | None
    # Whether another attempt may help: the worker died or was lost, rather than refused its input.
    retryable: bool
    # ok, exception, signal, oom, deadline, cancelled, lost, gate.
    exit_cause: str


class Executor(Protocol):
    """Runs one job in a process of its own."""

    def run(
        self, job: Job, device: str, on_message: Callable[[WorkerMessage], None], cancelled: CancelToken
    ) -> RunOutcome:
        """Blocks until the run is over; never raises for what the worker does."""
        ...


class CancelToken(Protocol):
    """Tells a run that it should stop."""

    def is_set(self) -> bool:
        """Whether cancelling was asked for."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for it, at most `timeout` seconds; returns `is_set()`."""
        ...


# --- Metrics ----------------------------------------------------------------------------------------------------------


class Metrics(Protocol):
    """What the jobs room reports; label values come from closed sets, never a job, model or user."""

    def job_submitted(self, strategy: str) -> None:
        """A job was accepted."""
        ...

    def job_completed(self, job: Job, device_type: str) -> None:
        """A job reached a terminal state."""
        ...

    def job_started(self, queue_wait_seconds: float, device_type: str) -> None:
        """A run left the queue."""
        ...

    def job_rejected(self, reason: str) -> None:
        """A submission was turned away: queue_full, quota, too_large, uri_denied, draining."""
        ...

    def worker_exited(self, cause: str) -> None:
        """A worker process ended."""
        ...

    def phase_finished(self, phase: Phase, seconds: float) -> None:
        """A run left a phase."""
        ...

    def worker_message(self, message: WorkerMessage, strategy: str, device_type: str) -> None:
        """Counters and results that a worker reported."""
        ...

    def cancel_finished(self, seconds: float) -> None:
        """A cancelled job's worker is gone."""
        ...

    def transfer(self, direction: str, transport: str = "grpc") -> AbstractContextManager[Callable[[int], None]]:
        """Counts one transfer (`upload` or `download`, over `grpc` or `uri`) while open; call the value with bytes moved."""
        ...

    def transfer_resumed(self, direction: str) -> None:
        """A transfer continued at an offset above 0."""
        ...

    def checksum_failed(self, direction: str) -> None:
        """Bytes did not match their checksum."""
        ...
