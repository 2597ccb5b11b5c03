"""Two small languages: the durable events of a job, and the messages that a worker sends over its pipe.

A worker writes one JSON object per line to the file descriptor that `--events-fd` names; stdout and stderr are never
read as messages, since a model can print.
"""

from __future__ import annotations

import enum

import msgspec

from pruning_server.errors import Reason
from pruning_server.jobs.model import Failure, Job, JobState, Progress
from pruning_server.spec.base import Value
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Verdict

# --- Durable events ---------------------------------------------------------------------------------------------------


class Severity(enum.StrEnum):
    """How much a log line matters."""

    INFO = "INFO"
    WARNING = "WARNING"


class StateEvent(Value, frozen=True, kw_only=True, tag_field="event", tag="state"):
    """The job entered `state`; `failure` with FAILED, and when a lost run is queued again."""

    state: JobState
    attempt: int
    failure: Failure | None = None


class ProgressEvent(Value, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """The run got further."""

    progress: Progress


class LogEvent(Value, frozen=True, kw_only=True, tag_field="event", tag="log"):
    """A line for people."""

    severity: Severity
    message: str


EventPayload = StateEvent | ProgressEvent | LogEvent


class Event(Value, frozen=True, kw_only=True):
    """One durable event: `sequence` from 1 without gaps per job, `time` in seconds since the epoch."""

    job_id: str
    sequence: int
    time: float
    payload: EventPayload


# --- What a watcher sees ----------------------------------------------------------------------------------------------


class Snapshot(Value, frozen=True, kw_only=True):
    """The job as it is; the first thing every watcher gets."""

    job: Job


# --- The worker's messages --------------------------------------------------------------------------------------------


class PhaseStarted(Value, frozen=True, kw_only=True, tag_field="message", tag="phase_started"):
    """The run entered a phase."""

    phase: Phase


class PhaseFinished(Value, frozen=True, kw_only=True, tag_field="message", tag="phase_finished"):
    """The run left a phase after `seconds`."""

    phase: Phase
    seconds: float


class ProgressMade(Value, frozen=True, kw_only=True, tag_field="message", tag="progress"):
    """The run got further; senders limit themselves to a few per second."""

    progress: Progress


class LogWritten(Value, frozen=True, kw_only=True, tag_field="message", tag="log"):
    """A line for people."""

    severity: Severity
    text: str


class CountersAdded(Value, frozen=True, kw_only=True, tag_field="message", tag="counters"):
    """Work done since the last such message, for the throughput metrics."""

    parameters_processed: int = 0
    parameters_removed: int = 0
    samples_trained: int = 0
    samples_evaluated: int = 0


class WorkerAlive(Value, frozen=True, kw_only=True, tag_field="message", tag="alive"):
    """Nothing else to say; sent every few seconds. `rss_bytes`: the worker's resident memory."""

    rss_bytes: int


class RunSucceeded(Value, frozen=True, kw_only=True, tag_field="message", tag="succeeded"):
    """The files in the job folder's `out/` are complete. Always the last message of a run that succeeded."""

    verdict: Verdict
    sparsity: float
    accuracy_drop: float
    device_type: str


class CheckPassed(Value, frozen=True, kw_only=True, tag_field="message", tag="check_passed"):
    """A fresh process loaded `out/pruned.pt` and got the outputs in `out/expected.npz`."""

    max_relative_error: float


class RunFailed(Value, frozen=True, kw_only=True, tag_field="message", tag="failed"):
    """The run ended without a model. Always the last message of such a run."""

    reason: Reason
    text: str
    phase: Phase | None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


WorkerMessage = (
    PhaseStarted
    | PhaseFinished
    | ProgressMade
    | LogWritten
    | CountersAdded
    | WorkerAlive
    | RunSucceeded
    | CheckPassed
    | RunFailed
)
