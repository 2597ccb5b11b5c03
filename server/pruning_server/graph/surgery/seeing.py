"""One visit of an op, read by the names of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pruning_server.graph import ir
from pruning_server.graph.channels import Channels, Ids
from pruning_server.graph.coupling.record import Seen, Visit
from pruning_server.graph.coupling.values import AxisMap, map_at
from pruning_server.graph.surgery.lengths import axis_line


class Sight:
    """A visit with the names of its arguments; tensors are `Seen`, lists are tuples."""

    def __init__(self, visit: Visit, channels: Channels) -> None:
        self.visit = visit
        self.channels = channels
        self.names = [argument.name for argument in ir.arguments_of(visit.node)]

    def position(self, name: str) -> int:
        """Position of an argument."""
        return self.names.index(name)

    def argument(self, name: str) -> Any:
        """An argument; None where the op has none of that name."""
        return self.visit.inputs[self.position(name)] if name in self.names else None

    def is_constant(self, name: str) -> bool:
        """Whether the argument is a constant of the code."""
        return ir.constant_of(list(self.visit.node.inputs())[self.position(name)])[0]

    def tensor(self, name: str) -> Seen | None:
        """An argument that is a tensor."""
        found = self.argument(name)
        return found if isinstance(found, Seen) else None

    def result(self) -> Seen | None:
        """The first result."""
        found = self.visit.results[0] if self.visit.results else None
        return found if isinstance(found, Seen) else None

    def results(self) -> Sequence[Seen]:
        """The tensors of a result that is a list."""
        found = self.visit.results[0] if self.visit.results else ()
        return [one for one in found if isinstance(one, Seen)] if isinstance(found, tuple) else []

    def line(self, tensor: Seen, axis: int) -> Ids | None:
        """The elements along an axis; None where its length never changes."""
        return self.line_of(map_at(tensor.maps, axis), axis)

    def line_of(self, one: AxisMap | None, axis: int) -> Ids | None:
        """The same for a map."""
        return axis_line(one, axis, self.channels)
