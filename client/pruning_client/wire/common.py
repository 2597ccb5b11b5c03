"""Conversions that every message needs: enums by name, times, durations."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from pruning_client.errors import BadInputError

E = TypeVar("E", bound=enum.StrEnum)


def enum_to_wire(wire_enum: Any, prefix: str, kind: type[E], value: E | str | None) -> Any:
    """Returns the number of `value`; 0 (unspecified) for None.

    Raises:
        BadInputError: `value` is not one of `kind`.
    """
    if value is None:
        return 0
    try:
        member = kind(value)
    except ValueError:
        names = ", ".join(kind)
        raise BadInputError(f"{value!r} is no {kind.__name__}; it is one of {names}") from None
    return wire_enum.Value(f"{prefix}_{member.name}")


def enum_from_wire(wire_enum: Any, prefix: str, kind: type[E], number: int) -> E | None:
    """Returns the member of `kind`; None for unspecified, and for what a newer server may send."""
    known: dict[int, str] = {n: name for name, n in wire_enum.items()}
    return kind.__members__.get(known.get(number, "").removeprefix(f"{prefix}_"))


def time_from_wire(message: Any, name: str) -> datetime | None:
    """Returns the Timestamp field `name` of `message` in UTC; None if unset."""
    if not message.HasField(name):
        return None
    stamp: Timestamp = getattr(message, name)
    return stamp.ToDatetime(tzinfo=UTC)


def seconds_from_wire(message: Any, name: str) -> float | None:
    """Returns the Duration field `name` of `message` in seconds; None if unset."""
    if not message.HasField(name):
        return None
    duration: Duration = getattr(message, name)
    return duration.seconds + duration.nanos / 1e9


def duration_to_wire(seconds: float) -> Duration:
    """Returns a Duration of `seconds`, to the nanosecond."""
    whole = int(seconds // 1)
    nanos = round((seconds - whole) * 1e9)
    return Duration(seconds=whole + nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)
