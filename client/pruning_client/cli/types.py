"""Values of flags: each function reads one text or says what it should be."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

from pruning_client.spec import Granularity, NmPattern, Risk, ScalarValue
from pruning_client.values import TensorSpec

_INT64 = range(-(2**63), 2**63)


def number_in(low: float, high: float, *, low_open: bool = False, high_open: bool = False) -> Callable[[str], float]:
    """Returns a reader of finite numbers in the interval; open ends do not belong to it."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        above = value > low if low_open else value >= low
        below = value < high if high_open else value <= high
        if not (math.isfinite(value) and above and below):
            raise argparse.ArgumentTypeError(f"must be {_interval(low, high, low_open, high_open)}, not {text}")
        return value

    return read


def _interval(low: float, high: float, low_open: bool, high_open: bool) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(high):
        return f"greater than {low:g}" if low_open else f"at least {low:g}"
    return f"in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"


def integer_from(low: int, high: int) -> Callable[[str], int]:
    """Returns a reader of integers from `low` to `high`, both included."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+", text):
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer")
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {text}")
        return value

    return read


def numbers(text: str) -> tuple[float, ...]:
    """Reads `0.5,0.25`."""
    return tuple(number_in(-math.inf, math.inf)(part.strip()) for part in text.split(","))


def distinct_fractions(text: str) -> tuple[float, ...]:
    """Reads `0.3,0.5,0.7`: numbers in [0, 1], each once, in ascending order."""
    read = number_in(0, 1)
    found = [read(part.strip()) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names a number twice")
    return tuple(sorted(found))


def risk(text: str) -> Risk:
    """Reads `0.02:0.1`: the largest loss that is accepted, and how likely a larger one may be."""
    loss, colon, error = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOSS:PROBABILITY, e.g. 0.02:0.1")
    read = number_in(0, 1, low_open=True, high_open=True)
    return Risk(max_loss=read(loss), error_probability=read(error))


def positive_numbers(text: str) -> tuple[float, ...]:
    """Reads `0.5,0.25`, all greater than 0."""
    return tuple(number_in(0, math.inf, low_open=True)(part.strip()) for part in text.split(","))


def nonzero_number(text: str) -> float:
    """Reads a finite number that is not 0."""
    value = number_in(-math.inf, math.inf)(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must not be 0")
    return value


def device(text: str) -> str:
    """Reads `auto`, `cpu`, `cuda` or `cuda:N`."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"device must be auto, cpu, cuda or cuda:N, not {text!r}")
    return text


def granularity(text: str) -> tuple[Granularity, NmPattern | None]:
    """Reads `weight`, `channel`, `head`, or `2:4`: 2 of every 4 weights are kept."""
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    if match:
        n, m = int(match[1]), int(match[2])
        if not 0 < n < m:
            raise argparse.ArgumentTypeError(f"in n:m, n of every m weights are kept: 0 < n < m, not {text}")
        return Granularity.NM, NmPattern(n, m)
    if text not in ("weight", "channel", "head"):
        raise argparse.ArgumentTypeError(f"must be weight, channel, head or n:m (for example 2:4), not {text!r}")
    return Granularity(text), None


def scalar_argument(text: str) -> tuple[int, ScalarValue]:
    """Reads `1=16000`: a position, and an integer, a float, true/false, or any other text; quotes force text."""
    position, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[0-9]{1,4}", position):
        raise argparse.ArgumentTypeError(f"must be POSITION=VALUE, for example 1=16000, not {text!r}")
    return int(position), _scalar(value)


def _scalar(text: str) -> ScalarValue:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?[0-9]+", text):
        if int(text) not in _INT64:
            raise argparse.ArgumentTypeError(f"{text} does not fit into 64 bits")
        return int(text)
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) or re.fullmatch(
        r"[+-]?(inf|nan)", text.lower()
    ):
        return float(text)
    return text


def tensor_spec(text: str) -> tuple[TensorSpec, tuple[int, ...]]:
    """Reads `1x3x32x32`, `1x128:int64` or `1x3x64?x64?`: a spec, and the axes marked as of any length."""
    shape, colon, dtype = text.partition(":")
    if not re.fullmatch(r"[0-9]{1,9}\??(x[0-9]{1,9}\??)*", shape) or (colon and not re.fullmatch(r"[a-z0-9]+", dtype)):
        raise argparse.ArgumentTypeError(f"must be a shape such as 1x3x32x32, 1x3x64?x64? or 1x128:int64, not {text!r}")
    parts = shape.split("x")
    sizes = tuple(int(size.rstrip("?")) for size in parts)
    if 0 in sizes:
        raise argparse.ArgumentTypeError(f"every size must be at least 1, not {text}")
    # The batch is always free, so that a mark on it says nothing new.
    free = tuple(axis for axis, size in enumerate(parts) if axis and size.endswith("?"))
    return TensorSpec(sizes, dtype or "float32"), free


def dynamic_axes(text: str) -> tuple[int, tuple[int, ...]]:
    """Reads `2,3` or `1:2,3`: an input by position (the first, where none is named), and its axes."""
    position, colon, axes = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2})*", axes) or not re.fullmatch(
        r"[0-9]{1,2}" if colon else "", position
    ):
        raise argparse.ArgumentTypeError(f"must be AXES or INPUT:AXES, for example 2,3 or 1:2,3, not {text!r}")
    found = tuple(int(axis) for axis in axes.split(","))
    if 0 in found:
        raise argparse.ArgumentTypeError("axis 0 is the batch, which is always free; leave it out")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} names an axis twice")
    return int(position or 0), found
