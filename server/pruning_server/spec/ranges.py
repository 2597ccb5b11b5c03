"""Rules about single values: each returns None if the value is fine, else what to change about it.

Every rule about a number refuses NaN and infinity: neither survives JSON, and no comparison with NaN is ever true.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,2}))?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
# Spaces and marks of every script are fine; what moves a terminal's cursor or ends a line of a log is not.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_INT64 = range(-(2**63), 2**63)
MAX_SCALAR_CHARACTERS = 10_000

Rule = Callable[[float], str | None]


def finite(value: float) -> str | None:
    """Neither NaN nor infinite."""
    return None if math.isfinite(value) else f"must be a finite number, not {value}"


def _number(accepts: Callable[[float], bool], wanted: str) -> Rule:
    def rule(value: float) -> str | None:
        return None if math.isfinite(value) and accepts(value) else f"must be {wanted}, not {value}"

    return rule


above_zero = _number(lambda x: x > 0, "a finite number above 0")
at_least_zero = _number(lambda x: x >= 0, "a finite number of at least 0")
at_least_one = _number(lambda x: x >= 1, "at least 1")
from_zero_below_one = _number(lambda x: 0 <= x < 1, "at least 0 and below 1")
from_zero_to_one = _number(lambda x: 0 <= x <= 1, "between 0 and 1")
above_zero_to_one = _number(lambda x: 0 < x <= 1, "above 0 and at most 1")
between_zero_and_one = _number(lambda x: 0 < x < 1, "above 0 and below 1")
between_half_and_one = _number(lambda x: 0.5 < x < 1, "above 0.5 and below 1")


def between(low: int, high: int) -> Rule:
    """At least `low` and at most `high`."""
    return _number(lambda x: low <= x <= high, f"between {low} and {high}")


def text(low: int, high: int, *, what: str = "the text") -> Callable[[str], str | None]:
    """Between `low` and `high` characters, none of which controls a terminal or ends a line."""

    def rule(value: str) -> str | None:
        if not low <= len(value) <= high:
            return f"{what} must have {low} to {high} characters, not {len(value)}"
        return f"{what} must not have control characters" if _CONTROL.search(value) else None

    return rule


def scalar(value: bool | float | str) -> str | None:
    """A scalar argument of forward: a bool, an integer of 64 bits, a finite number, or a text."""
    if isinstance(value, str):
        too_long = len(value) > MAX_SCALAR_CHARACTERS
        return f"must have at most {MAX_SCALAR_CHARACTERS} characters" if too_long else None
    if isinstance(value, int):
        return None if value in _INT64 else "must fit 64 bits"
    return finite(value)


def device(value: str) -> str | None:
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    return None if _DEVICE.fullmatch(value) else f"must be auto, cpu, cuda or cuda:N, not {value[:40]!r}"


def sha256(value: str) -> str | None:
    """The hexadecimal SHA-256 of a file."""
    return None if _SHA256.fullmatch(value) else "must be 64 hexadecimal digits"
