"""The one kind of value that crosses rooms and processes, and how it becomes bytes."""

from __future__ import annotations

from typing import TypeVar

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """An immutable value that round-trips through JSON; unknown fields are refused."""


V = TypeVar("V")

_encoder = msgspec.json.Encoder(order="deterministic")


def to_json(value: object) -> bytes:
    """Returns the value as UTF-8 JSON, the same bytes for the same value."""
    return _encoder.encode(value)


def from_json(data: bytes | str, kind: type[V]) -> V:
    """Returns the value of type `kind` that `data` holds.

    Raises:
        msgspec.ValidationError: the JSON does not fit the type.
        msgspec.DecodeError: it is not JSON.
    """
    return msgspec.json.decode(data, type=kind)
