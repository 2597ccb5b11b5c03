"""Edits of the code that follow from removing channels, as values; which numbers they give depends on what is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pruning_server.graph.surgery.lengths import Length


@dataclass(frozen=True, order=True)
class Address:
    """A node, the same in every load of the archive: its method, and its number in the order of `all_steps`."""

    method: str
    number: int


@dataclass(frozen=True)
class Resize:
    """A number in the code becomes the length that is left of an axis.

    Attributes:
        address: the node that takes the number.
        position: which argument.
        element: which element, where the argument is a list.
        elements: how long that list is; 0 where the argument is the number itself.
        length: what the number is; a computed number is scaled as this is.
    """

    address: Address
    position: int
    element: int | None
    elements: int
    length: Length


@dataclass(frozen=True)
class Pin:
    """A size that was read off a pruned axis and reaches arithmetic keeps its original value; fields as of `Resize`."""

    address: Address
    position: int
    element: int | None
    elements: int
    length: Length


@dataclass(frozen=True)
class Divide:
    """A split into equal parts becomes one into parts of these lengths, along the argument `axis_position`."""

    address: Address
    axis_position: int
    lengths: tuple[Length, ...]


Edit: TypeAlias = Resize | Pin | Divide
