"""Where stored kernels sum over channels: there a channel that has become a constant can be folded into the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning_server.graph import ir
from pruning_server.graph.channels import Channels, Ids
from pruning_server.graph.coupling.leaves import Leaf
from pruning_server.graph.coupling.record import Seen, Visit
from pruning_server.graph.coupling.values import map_at

_LINEAR = frozenset({"aten::linear"})
_CONVOLUTIONS = frozenset(
    f"aten::{name}" for name in ("conv1d", "conv2d", "conv3d", "_convolution", "convolution", "conv2d.padding")
)


@dataclass(frozen=True, eq=False)
class Place:
    """One axis of one stored tensor."""

    leaf: Leaf
    axis: int


@dataclass(frozen=True, eq=False)
class Consumer:
    """An op that multiplies an activation with a stored kernel and sums over its channels.

    Attributes:
        node: the op.
        axis: of the activation, its first argument.
        classes: the class of each coordinate on that axis.
        kernel: the summed axis of the kernel; it is the kernel of no other op.
        bias: what is added to each of its outputs, and to nothing else; None where there is none.
        folds: whether a constant in the activation is one in the result: no zeros are padded around it.
    """

    node: ir.Node
    axis: int
    classes: tuple[int, ...]
    kernel: Place
    bias: Place | None
    folds: bool


class Stored:
    """Finds the stored tensor that elements belong to."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        lines = [
            (int(line[0]), leaf, axis) for leaf in leaves for axis, line in enumerate(leaf.lines) if line is not None
        ]
        lines.sort(key=lambda one: one[0])
        self._starts = np.array([start for start, _, _ in lines], dtype=np.int64)
        self._places = [Place(leaf, axis) for _, leaf, axis in lines]

    def place(self, line: Ids) -> Place | None:
        """The axis of which `line` is all elements in their order; None where it is anything else."""
        index = int(np.searchsorted(self._starts, int(line[0]), side="right")) - 1
        if index < 0:
            return None
        found = self._places[index]
        own = found.leaf.lines[found.axis]
        return found if own is not None and own.shape == line.shape and bool((own == line).all()) else None


def find_consumers(visits: Sequence[Visit], stored: Stored, channels: Channels) -> tuple[Consumer, ...]:
    """Linear layers and ungrouped convolutions whose kernel and bias no other op uses."""
    found: dict[int, Consumer] = {}
    uses: dict[tuple[int, int], set[int]] = {}
    for visit in visits:
        for seen in _tensors(visit.inputs):
            for one in seen.maps if seen.stored else ():
                place = stored.place(one.ids.reshape(-1)) if len(one.axes) == 1 else None
                if place is not None:
                    uses.setdefault((id(place.leaf), place.axis), set()).add(id(visit.node))
        consumer = _consumer(visit, stored, channels)
        if consumer is not None:
            found[id(visit.node)] = consumer
    return tuple(one for one in found.values() if _is_alone(one, uses))


def _is_alone(consumer: Consumer, uses: dict[tuple[int, int], set[int]]) -> bool:
    places = [consumer.kernel, *([consumer.bias] if consumer.bias else [])]
    return all(len(uses.get((id(place.leaf), place.axis), ())) == 1 for place in places)


def _consumer(visit: Visit, stored: Stored, channels: Channels) -> Consumer | None:
    op, inputs = visit.op, visit.inputs
    if op not in _LINEAR | _CONVOLUTIONS or len(inputs) < 3:
        return None
    value, weight, bias = inputs[:3]
    if not isinstance(value, Seen) or not isinstance(weight, Seen) or not weight.stored or len(weight.shape) < 2:
        return None
    space = 0 if op in _LINEAR else len(weight.shape) - 2
    axis = len(value.shape) - space - 1
    names = [argument.name for argument in ir.arguments_of(visit.node)]
    given = dict(zip(names, inputs, strict=False))
    if space and (given.get("groups") != 1 or given.get("transposed")):
        return None
    line, kernel = map_at(value.maps, axis), map_at(weight.maps, 1)
    place = stored.place(kernel.ids.reshape(-1)) if kernel is not None and kernel.axes == (1,) else None
    if line is None or line.axes != (axis,) or place is None:
        return None
    added = map_at(bias.maps, 0) if isinstance(bias, Seen) and bias.stored else None
    padding = given.get("padding", 0)
    padded = padding not in (0, "valid") if not isinstance(padding, tuple) else any(size != 0 for size in padding)
    return Consumer(
        node=visit.node,
        axis=axis,
        classes=tuple(channels.roots(line.ids.reshape(-1)).tolist()),
        kernel=place,
        bias=stored.place(added.ids.reshape(-1)) if added is not None else None,
        folds=not (space and padded),
    )


def _tensors(values: object) -> list[Seen]:
    if isinstance(values, Seen):
        return [values]
    if isinstance(values, list | tuple):
        return [one for value in values for one in _tensors(value)]
    return []
