"""What the tracer remembers of each op that it ran: shapes and labels, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pruning_server.graph import ir
from pruning_server.graph.coupling.values import Labelled, LabelledInt, Maps


@dataclass(frozen=True)
class Seen:
    """A tensor that an op saw: its shape and labels, and whether it is made of stored tensors only."""

    shape: tuple[int, ...]
    maps: Maps
    stored: bool = False


@dataclass(frozen=True)
class Visit:
    """One execution of an op with tensors; `Seen` stands for every tensor in the nests of values.

    Attributes:
        node: the node in the graph that was run.
        op: as in the graph.
        inputs: arguments by position; sizes read off labelled axes are `LabelledInt`.
        results: results by position.
        explored: it lies in a branch that the run did not take.
    """

    node: ir.Node
    op: str
    inputs: tuple[Any, ...]
    results: tuple[Any, ...]
    explored: bool = False


@dataclass(frozen=True)
class Pin:
    """A size of a labelled axis that reaches arithmetic: it must keep its original value.

    Attributes:
        node: the node in the graph that was run.
        position: which argument; a size in a list is at `element` of it.
        element: its place in a list, None where it is the argument itself.
        elements: the length of that list, else 0.
        size: the size with its labels.
    """

    node: ir.Node
    position: int
    element: int | None
    elements: int
    size: LabelledInt


def holds_tensor(value: Any) -> bool:
    """Whether any value in a nest of lists and tuples is a tensor."""
    if isinstance(value, list | tuple):
        return any(holds_tensor(one) for one in value)
    return isinstance(value, Seen | Labelled)


def seen_of(value: Any) -> Any:
    """The same nest with `Seen` for tensors, and tuples for lists."""
    if isinstance(value, Labelled):
        return Seen(value.shape, value.maps, value.stored)
    if isinstance(value, list | tuple):
        return tuple(seen_of(one) for one in value)
    return value
