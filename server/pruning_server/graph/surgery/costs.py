"""What the model costs once channels are gone, from the shapes that its ops saw and the lengths that are left."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from math import prod

from pruning_server.graph import ir
from pruning_server.graph.channels import Channels
from pruning_server.graph.coupling.leaves import Leaf
from pruning_server.graph.coupling.record import Seen, Visit
from pruning_server.graph.coupling.values import map_at
from pruning_server.graph.macs import macs_of, may_multiply
from pruning_server.graph.surgery.lengths import Length, axis_line
from pruning_server.graph.values import NodeShapes, Shape


@dataclass(frozen=True)
class StructureCost:
    """Size of a model.

    Attributes:
        parameters: number of stored values of its parameters; of all floating-point tensors where it has none.
        stored_bytes: of everything that it stores, buffers and tensors in the code included.
        macs: multiply-accumulates of one sample; None where they cannot be counted.
    """

    parameters: int
    stored_bytes: int
    macs: int | None


@dataclass(frozen=True)
class ShapeLengths:
    """A shape, and which of its axes change how; None for those that never do."""

    shape: Shape
    lengths: tuple[Length | None, ...]
    item_bytes: int = 0
    is_parameter: bool = False

    def kept(self, removed: AbstractSet[int]) -> Shape:
        """The shape when these classes are gone."""
        return tuple(
            size if length is None else length.kept(removed)
            for size, length in zip(self.shape, self.lengths, strict=True)
        )


@dataclass(frozen=True)
class Work:
    """One execution of an op that multiplies."""

    node: NodeShapes
    inputs: tuple[tuple[int, tuple[ShapeLengths, ...]], ...]
    outputs: tuple[tuple[int, ShapeLengths], ...]

    def macs(self, removed: AbstractSet[int]) -> int | None:
        """Multiply-accumulates when these classes are gone; None where they cannot be counted."""
        inputs = {index: tuple(one.kept(removed) for one in shapes) for index, shapes in self.inputs}
        outputs = {index: shape.kept(removed) for index, shape in self.outputs}
        return macs_of(replace(self.node, inputs=(inputs,), outputs=(outputs,)))


def find_work(visits: Sequence[Visit], channels: Channels) -> tuple[Work, ...]:
    """Everything that multiplies in the visits of one run; branches that it did not take cost nothing."""
    return tuple(_work(visit, channels) for visit in visits if may_multiply(visit.op) and not visit.explored)


def _work(visit: Visit, channels: Channels) -> Work:
    inputs = []
    for index, value in enumerate(visit.inputs):
        seen = [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Seen)]
        if seen:
            inputs.append((index, tuple(shape_lengths(one, channels) for one in seen)))
    outputs = [
        (index, shape_lengths(one, channels)) for index, one in enumerate(visit.results) if isinstance(one, Seen)
    ]
    constants = {index: value for index, value in enumerate(visit.inputs) if isinstance(value, str | bool | int)}
    node = NodeShapes(
        op=visit.op,
        source=ir.source_of(visit.node),
        layer="",
        stored=(),
        arguments=tuple(argument.name for argument in ir.arguments_of(visit.node)),
        constants=constants,
        inputs=(),
        outputs=(),
    )
    return Work(node, tuple(inputs), tuple(outputs))


def shape_lengths(seen: Seen, channels: Channels) -> ShapeLengths:
    """How each axis of a value changes."""
    lengths: list[Length | None] = []
    for axis in range(len(seen.shape)):
        line = axis_line(map_at(seen.maps, axis), axis, channels)
        length = None if line is None else Length.of(line, channels)
        lengths.append(length if length is not None and length.classes else None)
    return ShapeLengths(seen.shape, tuple(lengths))


def leaf_lengths(leaf: Leaf, channels: Channels, *, is_parameter: bool) -> ShapeLengths:
    """How each axis of a stored tensor changes."""
    lengths = [None if line is None else Length.of(line, channels) for line in leaf.lines]
    kept = tuple(length if length is not None and length.classes else None for length in lengths)
    return ShapeLengths(tuple(leaf.tensor.shape), kept, leaf.tensor.element_size(), is_parameter)


def count_values(shapes: Sequence[ShapeLengths], removed: AbstractSet[int]) -> int:
    """Number of stored values that are left."""
    return sum(prod(one.kept(removed)) for one in shapes)


def count_bytes(shapes: Sequence[ShapeLengths], removed: AbstractSet[int]) -> int:
    """Their bytes."""
    return sum(prod(one.kept(removed)) * one.item_bytes for one in shapes)
