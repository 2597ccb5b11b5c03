"""What the server answers, as frozen values. Times are UTC; sizes in bytes; fractions and sparsities in [0, 1]."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pruning_client.spec import Granularity, Submission, Verdict


class ArtifactKind(enum.StrEnum):
    """What an artifact holds."""

    TORCHSCRIPT = "torchscript"
    DATASET = "dataset"
    LOSS = "loss"
    REPORT = "report"


class ArtifactState(enum.StrEnum):
    """PENDING: bytes are missing, continue at `committed_size_bytes`. ACTIVE: complete and verified."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"


@dataclass(frozen=True)
class Artifact:
    """A stored, content-addressed file; `kind` and `state` are None where the server is newer than this client."""

    artifact_id: str
    kind: ArtifactKind | None
    state: ArtifactState | None
    size_bytes: int
    sha256: str
    committed_size_bytes: int
    display_name: str
    create_time: datetime | None
    expire_time: datetime | None


class JobState(enum.StrEnum):
    """States of a job; SUCCEEDED, FAILED and CANCELLED are terminal and written once."""

    UNKNOWN = "UNKNOWN"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Phase(enum.StrEnum):
    """Stages of a run, in their order."""

    LOAD = "LOAD"
    OBSERVE = "OBSERVE"
    BASELINE = "BASELINE"
    PLAN = "PLAN"
    PRUNE = "PRUNE"
    RECOVER = "RECOVER"
    VERIFY = "VERIFY"
    EVALUATE = "EVALUATE"
    EXPORT = "EXPORT"


@dataclass(frozen=True)
class Progress:
    """How far a run is; `fraction` of the whole job, epochs from 1 (0: none yet)."""

    phase: Phase | None
    fraction: float
    epoch: int = 0
    epochs: int = 0
    remaining_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a job failed; `message` says what to change."""

    reason: str
    message: str
    phase: Phase | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a job produced; artifact ids are empty where there is no such file."""

    model_artifact_id: str
    report_artifact_id: str
    verdict: Verdict | None
    sparsity: float


@dataclass(frozen=True)
class Job:
    """A job as the server has it; `job_id` is empty after `submit(..., validate_only=True)`."""

    job_id: str
    state: JobState
    spec: Submission
    progress: Progress | None
    attempt: int
    max_attempts: int
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    expire_time: datetime | None
    failure: Failure | None
    result: Result | None
    labels: Mapping[str, str]
    request_id: str


@dataclass(frozen=True)
class Snapshot:
    """The job as it is; the first event of every watch, and again after each reconnection."""

    job: Job


@dataclass(frozen=True)
class StateChange:
    """The job entered `state`; `failure` with FAILED, and when a lost run is queued again."""

    state: JobState
    attempt: int
    failure: Failure | None


class Severity(enum.StrEnum):
    """How much a log line matters."""

    INFO = "INFO"
    WARNING = "WARNING"


@dataclass(frozen=True)
class LogLine:
    """A line for people, written by the run; it may quote names in the model, so print it with care."""

    severity: Severity
    message: str


@dataclass(frozen=True)
class Heartbeat:
    """Nothing happened; the stream lives."""


EventBody = Snapshot | StateChange | Progress | LogLine | Heartbeat


@dataclass(frozen=True)
class Event:
    """One event of a job; `sequence` from 1 without gaps, except in snapshots and heartbeats (the latest number)."""

    sequence: int
    time: datetime | None
    body: EventBody


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype (as torch names it) of a tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class LayerInspection:
    """A layer that could be pruned; `min_parameter_ratio`: smallest share of its parameters that could remain."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    group_indices: tuple[int, ...]
    min_parameter_ratio: float


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together."""

    channels: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class FrozenFinding:
    """What cannot be pruned, and why."""

    op: str
    source: str
    reason: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What could be pruned in a model, and what is frozen."""

    inputs: tuple[TensorSpec, ...]
    layers: tuple[LayerInspection, ...]
    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenFinding, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CriterionInfo:
    """A criterion, where it comes from (authors, year, arXiv), and what it can be asked for; (): the server does not say.

    `needs`: what it asks of the data: none, gradients, activations or trials.
    """

    name: str
    summary: str
    source: str
    granularities: tuple[Granularity, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class ScheduleInfo:
    """A schedule of dynamic pruning, where it comes from (authors, year, arXiv), and what it can prune."""

    name: str
    summary: str
    source: str
    granularities: tuple[Granularity, ...]


@dataclass(frozen=True)
class FeatureInfo:
    """What a condition may name; `level`: what has one value of it, a `weight`, `channel` or `layer`."""

    name: str
    level: str
    formula: str
    source: str
    cost: str


@dataclass(frozen=True)
class StrategyInfo:
    """A strategy of the API; not `available`: a request for it raises UnimplementedError."""

    name: str
    summary: str
    available: bool
    granularities: tuple[Granularity, ...]
    targets: tuple[str, ...]
    criteria: tuple[CriterionInfo, ...]
    schedules: tuple[ScheduleInfo, ...] = ()
    features: tuple[FeatureInfo, ...] = ()


@dataclass(frozen=True)
class Device:
    """A device that jobs can run on (`cpu`, `cuda:0`), and how many at the same time."""

    name: str
    description: str
    memory_bytes: int
    slots: int


@dataclass(frozen=True)
class ServerInfo:
    """The server's versions, devices and limits; a limit of 0 means that it has none."""

    version: str
    torch_version: str
    python_version: str
    devices: tuple[Device, ...]
    max_artifact_bytes: int
    queue_capacity_jobs: int
    max_attempts: int
    retention_seconds: float
    default_timeout_seconds: float
    sandboxed: bool
