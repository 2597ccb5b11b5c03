"""What a job is, and which state may follow which."""

from __future__ import annotations

import enum

import msgspec

from pruning_server.errors import Reason
from pruning_server.spec.base import Value
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import PruningSpec, Verdict


class JobState(enum.StrEnum):
    """States of a job; SUCCEEDED, FAILED and CANCELLED are terminal and written once."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

# RUNNING -> QUEUED is the retry of a lost run. CANCELLING -> SUCCEEDED/FAILED does not exist: who asked to cancel
# gets CANCELLED, whatever the worker managed to finish meanwhile.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class Failure(Value, frozen=True, kw_only=True):
    """Why a run ended without success; `message` says what to change."""

    reason: Reason
    message: str
    phase: Phase | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class Result(Value, frozen=True, kw_only=True):
    """What a run produced."""

    model_artifact_id: str
    report_artifact_id: str
    verdict: Verdict
    sparsity: float


class Progress(Value, frozen=True, kw_only=True):
    """How far a run is. `fraction` of the whole job in [0, 1]; epochs from 1; `remaining_seconds` None: unknown."""

    phase: Phase
    fraction: float
    epoch: int = 0
    epochs: int = 0
    remaining_seconds: float | None = None
    metrics: dict[str, float] = msgspec.field(default_factory=dict)


class Job(Value, frozen=True, kw_only=True):
    """One job as stored. Times are seconds since the epoch, UTC."""

    job_id: str
    owner: str
    request_id: str
    spec: PruningSpec
    # What the job runs on, `auto` resolved: `cpu`, `cuda` (any) or `cuda:N`.
    device: str
    state: JobState
    attempt: int
    max_attempts: int
    create_time: float
    start_time: float | None = None
    end_time: float | None = None
    expire_time: float | None = None
    progress: Progress | None = None
    failure: Failure | None = None
    result: Result | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    last_sequence: int = 0
