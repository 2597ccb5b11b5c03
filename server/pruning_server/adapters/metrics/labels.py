"""The closed sets of label values: whatever comes in, the number of series stays bounded."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

from pruning_server.errors import Reason
from pruning_server.jobs.model import Failure, JobState
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import ConditionalStrategy, DynamicStrategy, StaticStrategy, Strategy

OTHER = "other"
NO_REASON = "none"


@dataclass(frozen=True)
class ClosedSet:
    """Label values that are known; anything else becomes `other`."""

    values: tuple[str, ...]

    def of(self, value: str) -> str:
        """Returns `value` if it is in the set, else `other`."""
        return value if value in self.values else OTHER


STRATEGIES = ClosedSet(("static", "dynamic", "conditional"))
DEVICE_TYPES = ClosedSet(("cpu", "cuda"))
OUTCOMES = ClosedSet(tuple(state.lower() for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)))
LIVE_STATES = ClosedSet(tuple(state.lower() for state in (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLING)))
PHASES = ClosedSet(tuple(Phase))
REJECTIONS = ClosedSet(("queue_full", "quota", "too_large", "uri_denied", "draining"))
EXIT_CAUSES = ClosedSet(("ok", "exception", "signal", "oom", "deadline", "cancelled", "lost", "gate"))
SAMPLE_PHASES = ClosedSet(("train", "eval"))
DIRECTIONS = ClosedSet(("upload", "download"))
TRANSPORTS = ClosedSet(("grpc", "uri"))
STORAGE_KINDS = ClosedSet(("artifacts", "uploads", "jobs", "database"))
DATABASE_OPERATIONS = ClosedSet(("read", "write"))
WORKER_STATES = ClosedSet(("running", "stopping"))
RPC_KINDS = ClosedSet(("unary", "client_stream", "server_stream", "bidi_stream"))
RPC_CODES = ClosedSet(
    (
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    )
)

# Twelve at most, `none` and `other` included: an operator reads them as a list, and each multiplies the series.
_FAILURE_GROUPS: dict[Reason, str] = {
    Reason.NOTHING_PRUNABLE: "model",
    Reason.EVERYTHING_PRUNED: "request",
    Reason.TARGET_UNREACHABLE: "request",
    Reason.INVALID_FIELD: "request",
    Reason.MISSING_FIELD: "request",
    Reason.UNKNOWN_CRITERION: "request",
    Reason.UNKNOWN_DEVICE: "request",
    Reason.NOT_IMPLEMENTED: "request",
    Reason.LOSS_UNSUITABLE: "request",
    Reason.LOSS_NOT_FINITE: "request",
    Reason.VERDICT_NOT_REACHED: "verdict",
    Reason.VERIFICATION_FAILED: "verification",
    Reason.RESULT_REFUSED: "verification",
    Reason.WORKER_EXCEPTION: "exception",
    Reason.WORKER_SIGNAL: "signal",
    Reason.WORKER_OUT_OF_MEMORY: "out_of_memory",
    Reason.WORKER_LOST: "lost",
    Reason.DEADLINE_EXCEEDED: "deadline",
    Reason.GATE_DEADLINE_EXCEEDED: "deadline",
}
FAILURE_REASONS = ClosedSet(
    (
        NO_REASON,
        "request",
        "model",
        "dataset",
        "verdict",
        "verification",
        "exception",
        "signal",
        "out_of_memory",
        "lost",
        "deadline",
    )
)


def failure_reason(failure: Failure | None) -> str:
    """Returns the group of a failure's reason: one of `FAILURE_REASONS` or `other`."""
    if failure is None:
        return OTHER
    if failure.reason in _FAILURE_GROUPS:
        return _FAILURE_GROUPS[failure.reason]
    prefix = failure.reason.split("_", 1)[0].lower()
    return prefix if prefix in {"model", "dataset"} else OTHER


def strategy_name(strategy: Strategy) -> str:
    """Returns the strategy's name in the API."""
    match strategy:
        case StaticStrategy():
            return "static"
        case DynamicStrategy():
            return "dynamic"
        case ConditionalStrategy():
            return "conditional"


def device_type(device: str) -> str:
    """Returns `cpu` or `cuda` for `cpu`, `cuda`, `cuda:N`; anything else is `other`."""
    return DEVICE_TYPES.of(device.split(":", 1)[0])


def device_name(device: str) -> str:
    """Returns `cpu` or `cuda:N` with N below 100; anything else is `other`."""
    return device if re.fullmatch(r"cpu|cuda:\d{1,2}", device) else OTHER


class MethodLabels:
    """Lets the first `limit` distinct RPC methods through; later ones are `other`.

    The service names the methods that exist, and this adapter cannot import them; the limit holds whatever it is told.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._known: set[tuple[str, str, str]] = set()
        self._lock = threading.Lock()

    def of(self, kind: str, service: str, method: str) -> tuple[str, str, str]:
        """Returns (kind, service, method) as label values."""
        labels = (RPC_KINDS.of(kind), service, method)
        with self._lock:
            if labels in self._known:
                return labels
            if len(self._known) < self._limit:
                self._known.add(labels)
                return labels
        return (labels[0], OTHER, OTHER)
