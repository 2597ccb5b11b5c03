"""Lengths of axes as functions of what is removed."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import gcd

import numpy as np

from pruning_server.graph.channels import FIXED, Channels, Ids
from pruning_server.graph.coupling.values import AxisMap


@dataclass(frozen=True)
class Length:
    """How many coordinates of an axis there are, and how many of them go with each class.

    Attributes:
        classes: (class, number of its coordinates), ascending; only classes that can be removed.
        total: all coordinates, those that always stay included.
    """

    classes: tuple[tuple[int, int], ...]
    total: int

    @classmethod
    def of(cls, ids: Ids, channels: Channels) -> Length:
        """The length of a line of elements [n]; frozen classes count as coordinates that always stay."""
        roots, counts = np.unique(channels.roots(ids), return_counts=True)
        free = tuple(
            (root, count)
            for root, count in zip(roots.tolist(), counts.tolist(), strict=True)
            if not channels.is_frozen(root)
        )
        return cls(free, int(ids.size))

    @classmethod
    def constant(cls, value: int) -> Length:
        """A length that never changes."""
        return cls((), value)

    def kept(self, removed: AbstractSet[int]) -> int:
        """The length when these classes are gone."""
        return self.total - sum(count for root, count in self.classes if root in removed)

    def without_frozen(self, channels: Channels) -> Length:
        """The same after more classes were frozen."""
        return Length(tuple(one for one in self.classes if not channels.is_frozen(one[0])), self.total)

    def is_multiple_of(self, other: Length) -> bool:
        """Whether both change in the same proportion, whatever is removed; also the other way round."""
        return self._reduced() == other._reduced()

    def _reduced(self) -> tuple[tuple[tuple[int, int], ...], int]:
        if not self.classes:
            return (), 0
        divisor = gcd(self.total, *(count for _, count in self.classes))
        return tuple((root, count // divisor) for root, count in self.classes), self.total // divisor


def axis_line(one: AxisMap | None, axis: int, channels: Channels) -> Ids | None:
    """The elements along one axis of a settled map; None where its length never changes.

    Of a channel's index over several axes exactly one loses rows.
    """
    if one is None:
        return None
    if one.axes == (axis,):
        return one.ids.reshape(-1)
    if axis not in channels.varying_axes(one.ids):
        return None
    line: Ids = np.moveaxis(one.ids, axis, 0).reshape(one.ids.shape[axis], -1)[:, 0]
    return line


def is_free(ids: Ids, channels: Channels) -> bool:
    """Whether any of these coordinates can be removed."""
    return any(root != FIXED and not channels.is_frozen(root) for root in np.unique(channels.roots(ids)).tolist())
