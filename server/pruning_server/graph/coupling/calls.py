"""One execution of one op, as the rules see it, and what they can do with its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from pruning_server.graph import ir
from pruning_server.graph.channels import Cause, Channels, Ids
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps, map_at, tensors_in, without_axis


@dataclass(frozen=True)
class Call:
    """An op that has run.

    Attributes:
        op: as in the graph, e.g. `aten::conv2d`.
        source: where it stands in the model's code.
        arguments: values by the names of the schema, in its order; tensors are `Labelled`.
        results: what the op returned, plain.
        channels: where rules unite and freeze.
        rerun: runs the op again on plain arguments, the first one replaced.
        node: the node in the graph.
        unused: positions of the results that nothing depends on.
    """

    op: str
    source: str
    arguments: Mapping[str, Any]
    results: Sequence[Any]
    channels: Channels
    rerun: Callable[[Any], Sequence[Any]]
    node: ir.Node | None = None
    unused: frozenset[int] = frozenset()

    def __getitem__(self, name: str) -> Any:
        """An argument; None where the op has none of that name."""
        return self.arguments.get(name)

    def first(self) -> Any:
        """The first argument."""
        return next(iter(self.arguments.values()))

    def is_constant(self, name: str) -> bool:
        """Whether an argument is a constant of the code, so that it is the same in every run."""
        values = list(self.node.inputs()) if self.node is not None else []
        return name in self.arguments and ir.constant_of(values[list(self.arguments).index(name)])[0]

    def cause(self, reason: str, *, expected: bool = False) -> Cause:
        """A reason with this op and its source line."""
        return Cause(self.op, self.source, reason, expected)

    # --- Results ------------------------------------------------------------------------------------------------------

    def result(self, maps: Maps, index: int = 0) -> Labelled:
        """A result with its labels."""
        tensors = list(tensors_in(list(self.arguments.values())))
        stored = bool(tensors) and all(one.stored for one in tensors)
        return Labelled(self.results[index], maps, stored)

    def alike(self, maps: Maps) -> list[Any]:
        """All results that have the shape of the first get the same labels; the others get none."""
        shape = self.results[0].shape
        return [
            self.result(maps if result.shape == shape else (), index) if isinstance(result, torch.Tensor) else result
            for index, result in enumerate(self.results)
        ]

    # --- Labels -------------------------------------------------------------------------------------------------------

    def freeze(self, values: Any, reason: str) -> None:
        """Everything that labels these values stays."""
        for value in tensors_in(values):
            for one in value.maps:
                self.channels.freeze(one.ids, self.cause(reason))

    def hold(self, maps: Maps, axis: int, reason: str) -> None:
        """Nothing may be removed along an axis; a map that covers others too is united along this one."""
        held = map_at(maps, axis)
        if held is None:
            return
        if held.axes != (axis,):
            self.channels.unite_along(held.ids, axis, self.cause(reason))
            if self.channels.varying_axes(held.ids):
                return
        self.channels.freeze(held.ids, self.cause(reason))

    def held(self, value: Labelled, axes: Iterable[int], reason: str) -> Maps:
        """Holds axes of a value; returns its maps without them."""
        maps = value.maps
        for axis in sorted({axis % len(value.shape) for axis in axes} if value.shape else ()):
            self.hold(maps, axis, reason)
            maps = self.uncovered(maps, axis)
        return maps

    def uncovered(self, maps: Maps, axis: int) -> Maps:
        """Maps that no longer cover an axis, because it is held or contracted; decides nothing."""
        kept = []
        for one in maps:
            if not one.covers(axis):
                kept.append(one)
                continue
            heads = self.channels.choices.heads_of(one.ids, axis) if self.channels.choices is not None else None
            if heads is not None:
                kept.append(AxisMap(heads))
                continue
            rest = without_axis(one.ids, axis)
            for other in set(AxisMap(rest).axes) - set(self.channels.varying_axes(rest)):
                rest = without_axis(rest, other)
            if rest.size > 1:
                kept.append(AxisMap(rest))
        return tuple(kept)

    def line(self, value: Labelled, axis: int, reason: str) -> Ids | None:
        """The labels along one axis alone; a map over several axes is decided first."""
        found = value.map_at(axis)
        if found is None:
            return None
        axis %= len(value.shape)
        if found.axes != (axis,) and self.channels.choose_axis(found.ids, self.cause(reason)) != axis:
            return None
        line: Ids = np.moveaxis(found.ids, axis, 0).reshape(found.ids.shape[axis], -1)[:, 0]
        return line

    def contract(
        self, one: Labelled, axis: int, other: Labelled, other_axis: int, partners: Sequence[tuple[Ids, int]] = ()
    ) -> None:
        """Two axes are multiplied and summed: their channels go together, and the weight's side is the consumer.

        Where dimensions inside heads go, those of `partners`, split indices with an axis each, go too.
        """
        left, right = one.map_at(axis), other.map_at(other_axis)
        reason = "it is summed with an axis that always stays"
        if self._opens(one, left, other, right):
            sides = [(found.ids, at % found.ids.ndim) for found, at in ((left, axis), (right, other_axis)) if found]
            self.open_choice(sides, partners)
            return
        for value, found, partner, at in ((one, left, right, axis), (other, right, left, other_axis)):
            if found is None:
                continue
            if value.stored:
                self.channels.mark_consumer(found.ids)
            joint = partner is not None and len(found.axes) > 1 and len(partner.axes) > 1
            if partner is None or joint:  # whole heads
                self.hold(value.maps, at % len(value.shape), reason)
            if joint:
                self.channels.mark_heads(found.ids)
            elif partner is not None and not (one.stored or other.stored):
                self.channels.mark_contracted(
                    found.ids, self.cause("two activations are multiplied and summed over it")
                )
        if left is not None and right is not None and min(len(left.axes), len(right.axes)) == 1:
            rows, columns = _last(left, axis % left.ids.ndim), _last(right, other_axis % right.ids.ndim)
            if len(left.axes) > 1:
                rows, columns = columns, rows
            self.channels.unite(columns, rows.reshape(-1), self.cause(reason))

    def _opens(self, one: Labelled, left: AxisMap | None, other: Labelled, right: AxisMap | None) -> bool:
        """Whether two split indices of activations are contracted, and dimensions inside heads may go."""
        if self.channels.choices is None or left is None or right is None or one.stored or other.stored:
            return False
        return len(left.axes) > 1 and len(right.axes) > 1

    def open_choice(self, sides: Sequence[tuple[Ids, int]], partners: Sequence[tuple[Ids, int]] = ()) -> None:
        """Split indices are contracted over these axes: whole heads may go, or the same dimensions in every head."""
        if self.channels.choices is not None:
            cause = self.cause("two activations are multiplied and summed over it")
            self.channels.choices.open(sides, id(self.node), cause, partners)

    def combine(self, operands: Sequence[tuple[Maps, Sequence[int]]], shape: Sequence[int]) -> Maps:
        """Broadcasts operands, given by maps and shape, element by element to one shape; returns the result's maps."""
        dims = len(shape)
        aligned = [[one.aligned(dims) for one in maps] for maps, _ in operands]
        merged: list[AxisMap] = []
        for own in aligned:
            for one in own:
                self._merge(merged, one)
        for own, (_, sizes) in zip(aligned, operands, strict=True):
            full = (1,) * (dims - len(sizes)) + tuple(sizes)
            for axis in range(dims):
                if full[axis] > 1 and not any(one.covers(axis) for one in own):
                    self.hold(tuple(merged), axis, "it meets an axis of another tensor that always stays")
        return tuple(merged)

    def elementwise(self, values: Sequence[Labelled], shape: Sequence[int]) -> Maps:
        """`combine` for whole tensors."""
        return self.combine([(value.maps, value.shape) for value in values], shape)

    def _merge(self, merged: list[AxisMap], new: AxisMap) -> None:
        """Adds a map to disjoint ones; where they share axes their channels go together."""
        cause = self.cause("it meets channels that are laid out in another way")
        for known in [one for one in merged if set(one.axes) & set(new.axes)]:
            if known.axes == new.axes:
                self.channels.unite(known.ids, new.ids, cause)
                merged.remove(known)
            elif set(known.axes) < set(new.axes) or set(new.axes) < set(known.axes):
                larger, smaller = (new, known) if len(known.axes) < len(new.axes) else (known, new)
                self.channels.meet(larger.ids, smaller.ids, cause)
                merged.remove(known)
                new = larger
            else:
                self.channels.freeze(known.ids, cause)
                self.channels.freeze(new.ids, cause)
                return
        merged.append(new)


def _last(one: AxisMap, axis: int) -> Ids:
    return np.moveaxis(one.ids, axis, -1)


Rule: TypeAlias = Callable[[Call], Sequence[Any]]
"""Unites and freezes, and returns the op's results as values."""


def axis_list(value: Any, dims: int) -> list[int]:
    """Axes named by an op's argument, from 0; all of them where it names none."""
    if value is None or (isinstance(value, list | tuple) and not value):
        return list(range(dims))
    axes = value if isinstance(value, list | tuple) else [value]
    return [int(axis) % dims for axis in axes] if dims else []
