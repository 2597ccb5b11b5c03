"""Edits of the code that follow from removing channels, as values; which numbers they give depends on what is removed."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import gcd
from typing import TypeAlias

from pruning_server.graph.surgery.lengths import Length


@dataclass(frozen=True, order=True)
class Address:
    """A node, the same in every load of the archive: its method, and its number in the order of `all_steps`."""

    method: str
    number: int


@dataclass(frozen=True)
class Resize:
    """A number in the code becomes the length that is left of an axis, or stays what it was.

    Attributes:
        address: the node that takes the number.
        position: which argument.
        element: which element, where the argument is a list.
        elements: how long that list is; 0 where the argument is the number itself.
        length: what the number must be; None where it must keep its original value.
        read: the length that it was read off, so that it changes by itself; None for any other number.
    """

    address: Address
    position: int
    element: int | None
    elements: int
    length: Length | None
    read: Length | None

    def factors(self, removed: AbstractSet[int]) -> tuple[int, int]:
        """What the number is multiplied with, and then divided by, once these classes are gone."""
        factor, divisor = 1, 1
        if self.length is not None:
            factor, divisor = self.length.kept(removed), self.length.total
        if self.read is not None:
            factor, divisor = factor * self.read.total, divisor * self.read.kept(removed)
        common = gcd(factor, divisor)
        return factor // common, divisor // common


@dataclass(frozen=True)
class Divide:
    """A split into equal parts becomes one into parts of these lengths, along the argument `axis_position`."""

    address: Address
    axis_position: int
    lengths: tuple[Length, ...]

    def is_needed(self, removed: AbstractSet[int]) -> bool:
        """Whether any part becomes shorter."""
        return any(length.kept(removed) != length.total for length in self.lengths)


@dataclass(frozen=True)
class Rescale:
    """The scale of attention, which depends on the length of the contracted axis, is written out as it was.

    Attributes:
        address: the node that takes the scale.
        position: which argument.
        length: the axis.
    """

    address: Address
    position: int
    length: Length

    def is_needed(self, removed: AbstractSet[int]) -> bool:
        """Whether the axis becomes shorter."""
        return self.length.kept(removed) != self.length.total

    @property
    def scale(self) -> float:
        """1 / sqrt(dimensions) before anything was removed."""
        return float(self.length.total**-0.5)


@dataclass(frozen=True)
class Unfuse:
    """Fused attention is written out where anything of it goes, since its kernel demands full heads.

    Attributes:
        address: the fused op.
        heads: how many there are.
        width: dimensions of queries and keys per head.
        made: dimensions of values per head.
        others: further axes that the kernel demands in full.
    """

    address: Address
    heads: Length
    width: Length
    made: Length
    others: tuple[Length, ...]

    def is_needed(self, removed: AbstractSet[int]) -> bool:
        """Whether the kernel could not run without these classes."""
        return any(one.kept(removed) != one.total for one in (self.heads, self.width, self.made, *self.others))

    @property
    def scale(self) -> float:
        """1 / sqrt(dimensions) before anything was removed."""
        return float(self.width.total**-0.5)


Edit: TypeAlias = Resize | Divide | Rescale | Unfuse
