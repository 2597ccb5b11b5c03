"""What a perturbation is, what it knows of an input, and what holds for all of them."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class InputKind(enum.StrEnum):
    """What an input was recognised as."""

    IMAGE = "image"
    TOKENS = "tokens"
    STEPS = "float sequence"
    TABLE = "table"


@dataclass(frozen=True)
class InputFacts:
    """What is known of one input.

    Attributes:
        axis: of one sample; of an image that of its channels (None: it has none), of a float sequence that of its steps.
        low: the smallest value that an image may have; `high` the largest.
        mean: of the set, shaped to broadcast over one sample: per channel or feature.
        std: likewise.
        filler: [T] what stands for a hidden token at each position.
    """

    kind: InputKind
    axis: int | None = None
    low: float = 0.0
    high: float = 1.0
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    filler: np.ndarray | None = None

    def plane(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of an image of this shape."""
        rows, columns = (size for axis, size in enumerate(shape) if axis != self.axis)
        return rows, columns

    def window(self, rows: slice, columns: slice) -> tuple[slice, ...]:
        """The index of a part of an image's plane, all channels."""
        whole = [rows, columns]
        if self.axis is not None:
            whole.insert(self.axis, slice(None))
        return tuple(whole)


# Takes one sample as float64 (tokens: as stored), the level, the facts and the sample's own generator; gives a new array.
Change = Callable[[np.ndarray, float, InputFacts, np.random.Generator], np.ndarray]
# The level that a sample of this shape really gets, where only whole pixels, tokens or features can be hidden.
Realize = Callable[[float, tuple[int, ...], InputFacts], float]


def _as_asked(level: float, _shape: tuple[int, ...], _facts: InputFacts) -> float:
    return level


@dataclass(frozen=True)
class Perturbation:
    """One way to make inputs of one kind harder.

    Attributes:
        name: of the curve; occlusion has one of that name per kind of input.
        kind: the inputs that it suits.
        target: what it acts on: `area`, `tokens`, `features`, ...
        unit: of its levels.
        levels: ascending, above 0; level 0 is the unchanged input.
        change: what it does; the larger the level, the harder. What it draws must not depend on the level, so that a
            sample only gets harder along the curve.
        realize: the level that comes of a wanted one.
    """

    name: str
    kind: InputKind
    target: str
    unit: str
    levels: tuple[float, ...]
    change: Change
    realize: Realize = _as_asked


def perturb(
    perturbation: Perturbation,
    values: np.ndarray,
    level: float,
    facts: InputFacts,
    *,
    seed: int,
    rows: Sequence[int] | np.ndarray,
    draw: int = 0,
) -> np.ndarray:
    """Returns a changed copy of [n, ...] values, of the same shape and dtype; images keep their range of values.

    The same seed, row and draw change a sample in the same way, whichever others are beside it.

    Args:
        perturbation: what to do.
        values: samples as stored; not changed.
        level: in the perturbation's unit, at least 0; 0 changes nothing.
        facts: of this input.
        seed: of everything random.
        rows: [n] the samples' positions in their set.
        draw: number of the repetition.

    Raises:
        ValueError: the level is negative or not finite.
    """
    if not (np.isfinite(level) and level >= 0):
        raise ValueError(f"a level is a finite number of at least 0, not {level}")
    changed = np.array(values)
    if level == 0:
        return changed
    word = zlib.crc32(perturbation.name.encode())
    for place, row in enumerate(rows):
        rng = np.random.default_rng([seed, word, int(row), draw])
        sample = values[place] if facts.kind is InputKind.TOKENS else np.asarray(values[place], np.float64)
        changed[place] = _stored(perturbation.change(sample, level, facts, rng), facts, changed.dtype)
    return changed


def _stored(sample: np.ndarray, facts: InputFacts, dtype: np.dtype[Any]) -> np.ndarray:
    if facts.kind is InputKind.TOKENS:
        return sample
    if facts.kind is InputKind.IMAGE:
        sample = np.clip(sample, facts.low, facts.high)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.asarray(np.clip(np.rint(sample), limits.min, limits.max))
    largest = float(np.finfo(dtype).max)
    return np.asarray(np.clip(sample, -largest, largest))


def hidden_count(level: float, length: int) -> int:
    """How many of `length` things are hidden at a level in [0, 1]: at least one."""
    return min(length, max(1, round(level * length)))


def span(center: float, width: int, length: int) -> slice:
    """`width` places around `center` in [0, 1), pushed inside [0, length)."""
    start = round(center * length - width / 2)
    start = min(max(start, 0), length - width)
    return slice(start, start + width)
