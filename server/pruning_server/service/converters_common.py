"""Conversions that every message needs: enums by name, times and durations, and what is wrong with a message."""

from __future__ import annotations

import enum
from typing import Any, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.timestamp_pb2 import Timestamp

from pruning_api.v1 import artifact_pb2, pruning_job_pb2, spec_pb2
from pruning_server.jobs.events import Severity
from pruning_server.jobs.model import JobState
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.phases import Phase
from pruning_server.spec.problems import Problem, invalid
from pruning_server.spec.request import (
    Granularity,
    Layout,
    Loss,
    MultipleTestingCorrection,
    Robustness,
    Scope,
    Task,
    Verdict,
)

E = TypeVar("E", bound=enum.StrEnum)

NANOS = 10**9
MAX_UINT32 = 2**32 - 1
# Beyond what a Duration can hold nothing is meant; a worker that claims to need that long is not believed.
MAX_DURATION_SECONDS = 10 * 365 * 24 * 3600.0


class EnumTable(Generic[E]):
    """An enum of the wire and its values, matched by name; the wire's zero is None."""

    def __init__(self, wire: EnumTypeWrapper, prefix: str, kind: type[E]) -> None:
        self.wire = wire
        self.kind = kind
        self._numbers = {member: wire.Value(f"{prefix}_{member.name}") for member in kind}
        self._members = {number: member for member, number in self._numbers.items()}

    def to_wire(self, member: E | None) -> Any:
        """Returns the number of a member; 0 for None. Typed Any, since messages want their own enum's type."""
        return 0 if member is None else self._numbers[member]

    def from_wire(self, number: int) -> E | None:
        """Returns the member; None for 0.

        Raises:
            KeyError: the number is one that this version does not know.
        """
        return None if number == 0 else self._members[number]

    def names(self) -> str:
        """The names on the wire that a caller can send."""
        return ", ".join(name for name, number in self.wire.items() if number != 0)


def _table(wire: Any, prefix: str, kind: type[E]) -> EnumTable[E]:
    return EnumTable(wire, prefix, kind)


ARTIFACT_KINDS = _table(artifact_pb2.ArtifactKind, "ARTIFACT_KIND", ArtifactKind)
JOB_STATES = _table(pruning_job_pb2.JobState, "JOB_STATE", JobState)
PHASES = _table(pruning_job_pb2.Phase, "PHASE", Phase)
SEVERITIES = _table(pruning_job_pb2.LogSeverity, "LOG_SEVERITY", Severity)
GRANULARITIES = _table(spec_pb2.Granularity, "GRANULARITY", Granularity)
SCOPES = _table(spec_pb2.Scope, "SCOPE", Scope)
CORRECTIONS = _table(spec_pb2.MultipleTestingCorrection, "MULTIPLE_TESTING_CORRECTION", MultipleTestingCorrection)
VERDICTS = _table(spec_pb2.Verdict, "VERDICT", Verdict)
LAYOUTS = _table(spec_pb2.Layout, "LAYOUT", Layout)
TASKS = _table(spec_pb2.Task, "TASK", Task)
LOSSES = _table(spec_pb2.Loss, "LOSS", Loss)
ROBUSTNESS = _table(spec_pb2.Robustness, "ROBUSTNESS", Robustness)
ALL_TABLES: tuple[EnumTable[Any], ...] = (
    ARTIFACT_KINDS, JOB_STATES, PHASES, SEVERITIES, GRANULARITIES, SCOPES, CORRECTIONS, VERDICTS, LAYOUTS, TASKS, LOSSES,
    ROBUSTNESS,
)  # fmt: skip


class Findings:
    """What is wrong with one message, collected while it is read, so that the caller hears of all of it."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Remembers a problem."""
        self.problems.append(problem)

    def member(self, table: EnumTable[E], number: int, field: str) -> E | None:
        """Returns the member of an enum; None for unspecified, and for an unknown number, which becomes a problem."""
        try:
            return table.from_wire(number)
        except KeyError:
            self.add(invalid(field, f"{number} is not known to this server; use one of {table.names()}"))
            return None


def timestamp(seconds: float | None) -> Timestamp | None:
    """Returns seconds since the epoch as a Timestamp, to the microsecond that a float of today carries."""
    if seconds is None:
        return None
    message = Timestamp()
    message.FromMicroseconds(round(seconds * 1e6))
    return message


def duration(seconds: float | None) -> Duration | None:
    """Returns seconds as a Duration, to the nanosecond, and not above ten years."""
    if seconds is None:
        return None
    bounded = min(max(seconds, -MAX_DURATION_SECONDS), MAX_DURATION_SECONDS)
    message = Duration()
    message.FromNanoseconds(round(bounded * NANOS))
    return message


def seconds_of(message: Duration) -> float:
    """Returns a Duration in seconds; total, also for one that breaks the rules of Duration."""
    return (message.seconds * NANOS + message.nanos) / NANOS


def uint32(number: int) -> int:
    """Returns the number, or the nearest that the field can hold."""
    return min(max(number, 0), MAX_UINT32)
