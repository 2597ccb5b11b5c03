"""From what was seen to the edits of the code; where no edit would do, the channels are frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruning_server.graph import ir
from pruning_server.graph.channels import FIXED, Cause, Channels, Ids
from pruning_server.graph.coupling.record import Pin as SeenPin
from pruning_server.graph.coupling.record import Seen, Visit
from pruning_server.graph.coupling.tracer import Tracer
from pruning_server.graph.coupling.values import LabelledInt
from pruning_server.graph.program import Method, all_steps
from pruning_server.graph.surgery.demands import DEMANDS, own_line
from pruning_server.graph.surgery.edits import Address, Divide, Edit, Rescale, Resize, Unfuse
from pruning_server.graph.surgery.lengths import Length, axis_line, is_free
from pruning_server.graph.surgery.seeing import Sight

# Where a number is: its node (by address, and by identity where it has none), argument, element, length of the list.
_Spot = tuple[Address | None, int, int, int | None, int]


@dataclass(frozen=True)
class _Number:
    """A number that an op takes: what it must be (None: what it was), and the length that it is read off, if any."""

    wanted: Length | None
    read: Length | None

    @property
    def adapts(self) -> bool:
        """Whether it changes by itself as it must."""
        return _classes(self.wanted) == _classes(self.read)

    def is_like(self, other: _Number) -> bool:
        """Whether both are adapted by the same factor."""
        pairs = ((self.wanted, other.wanted), (self.read, other.read))
        return all(
            (one is None and two is None) or (one is not None and two is not None and one.is_multiple_of(two))
            for one, two in pairs
        )


def _classes(length: Length | None) -> tuple[tuple[int, int], ...]:
    return () if length is None else length.classes


def addresses(methods: Mapping[str, Method]) -> dict[int, Address]:
    """Where each node is, by its Python identity, which it keeps while its method lives."""
    return {
        id(step.node): Address(name, number)
        for name, method in methods.items()
        for number, step in enumerate(all_steps(method.program))
    }


def plan_edits(tracer: Tracer, methods: Mapping[str, Method]) -> tuple[Edit, ...]:
    """Edits for whatever may be removed; freezes what no edit would make right. Call after `Tracer.finish`."""
    planner = _Planner(tracer.channels, addresses(methods))
    for visit in tracer.visits:
        planner.read(visit)
    for pin in tracer.pins:
        planner.pin(pin)
    channels = tracer.channels
    lines = [channels.roots(line).tolist() for leaf in tracer.leaves for line in leaf.lines if line is not None]
    planner.keep_axes(frozenset(line) for line in lines)
    return planner.edits()


class _Planner:
    """Fills `demands.Collector`."""

    def __init__(self, channels: Channels, places: Mapping[int, Address]) -> None:
        self._channels = channels
        self._places = places
        self._numbers: dict[_Spot, _Number] = {}
        self._divisions: dict[tuple[Address | None, int, int], tuple[Length, ...]] = {}
        self._scales: dict[tuple[Address | None, int, int], Length] = {}
        self._fused: dict[tuple[Address | None, int], tuple[Length, ...]] = {}
        self._whole: dict[frozenset[int], Cause] = {}

    def read(self, visit: Visit) -> None:
        """Takes in one execution of an op."""
        self._keep_something(visit)
        demand = DEMANDS.get(visit.op)
        if demand is not None:
            demand(Sight(visit, self._channels), self)

    def pin(self, seen: SeenPin) -> None:
        """Takes in a size that reaches arithmetic."""
        line = axis_line(seen.size.map, seen.size.axis, self._channels)
        if line is None or not is_free(line, self._channels):
            return
        place = self._places.get(id(seen.node))
        cause = _cause(seen.node, "its size is used in a computation that cannot be edited")
        spot = (place, id(seen.node), seen.position, seen.element, seen.elements)
        number, known = _Number(None, Length.of(line, self._channels)), self._numbers.get(spot)
        if known is None or known.read != number.read:  # else the op's own demand says what it becomes
            self._put(spot, number, cause)

    def edits(self) -> tuple[Edit, ...]:
        """What is left to do once everything is frozen that must be."""
        found: list[Edit] = []
        for (place, _, position, element, elements), number in self._numbers.items():
            wanted, read = (one and one.without_frozen(self._channels) for one in (number.wanted, number.read))
            changes = [one for one in (wanted, read) if one is not None and one.classes]
            if changes and place is not None and not (wanted and read and wanted.classes == read.classes):
                found.append(Resize(place, position, element, elements, wanted, read))
        for (place, _, position), parts in self._divisions.items():
            lengths = tuple(length.without_frozen(self._channels) for length in parts)
            if any(length.classes for length in lengths) and place is not None:
                found.append(Divide(place, position, lengths))
        for (place, _, position), length in self._scales.items():
            left = length.without_frozen(self._channels)
            if left.classes and place is not None:
                found.append(Rescale(place, position, left))
        for (place, _), parts in self._fused.items():
            heads, width, made, *others = (length.without_frozen(self._channels) for length in parts)
            if any(one.classes for one in (heads, width, made, *others)) and place is not None:
                found.append(Unfuse(place, heads, width, made, tuple(others)))
        return tuple(found)

    # --- Collector ----------------------------------------------------------------------------------------------------

    def resize(self, sight: Sight, name: str, element: int | None, line: Ids | None) -> None:
        """See `Collector`."""
        position = sight.position(name)
        value: Any = sight.visit.inputs[position]
        elements = 0 if element is None else len(value)
        value = value if element is None else value[element]
        wanted = Length.constant(int(value)) if line is None else Length.of(line, self._channels)
        cause = _cause(sight.visit.node, "a number in the code that depends on it cannot be adapted")
        own = own_line(value, sight) if isinstance(value, LabelledInt) else None
        read = None if own is None else Length.of(own, self._channels)
        spot = (self._place(sight), id(sight.visit.node), position, element, elements)
        self._put(spot, _Number(wanted, read), cause)

    def divide(self, sight: Sight, axis_name: str, lines: list[Ids | None]) -> None:
        """See `Collector`."""
        parts = sight.results()
        axis = int(sight.argument(axis_name))
        lengths = tuple(
            Length.constant(part.shape[axis]) if line is None else Length.of(line, self._channels)
            for part, line in zip(parts, lines, strict=True)
        )
        if "chunks" in sight.names and len(set(lengths)) == 1:
            return  # equal parts stay equal
        cause = _cause(sight.visit.node, "it is split into parts whose number changes")
        key = (self._place(sight), id(sight.visit.node), sight.position(axis_name))
        known = self._divisions.setdefault(key, lengths)
        if (known != lengths or key[0] is None) and any(one.classes for one in (*known, *lengths)):
            for one in (*known, *lengths):
                self._freeze(one, cause)

    def rescale(self, sight: Sight, name: str, line: Ids) -> None:
        """See `Collector`."""
        length = Length.of(line, self._channels)
        key = (self._place(sight), id(sight.visit.node), sight.position(name))
        known = self._scales.setdefault(key, length)
        if known != length or key[0] is None:
            cause = _cause(sight.visit.node, "its scale depends on the number of dimensions and cannot be written out")
            for one in (known, length):
                self._freeze(one, cause)

    def unfuse(self, sight: Sight, heads: Ids | int, width: Ids | int, made: Ids | int, others: Sequence[Ids]) -> None:
        """See `Collector`."""
        lengths = tuple(
            Length.constant(one) if isinstance(one, int) else Length.of(one, self._channels)
            for one in (heads, width, made, *others)
        )
        key = (self._place(sight), id(sight.visit.node))
        known = self._fused.setdefault(key, lengths)
        if known != lengths or key[0] is None:
            cause = _cause(sight.visit.node, "fused attention that is run with different heads cannot be written out")
            for one in (*known, *lengths):
                self._freeze(one, cause)
        for line in (width, made):
            if not isinstance(line, int):
                self._note_axis(line, sight.visit.node)

    def agree(self, sight: Sight, one: Seen, other: Seen, axis: int) -> None:
        """See `Collector`."""
        lengths = [
            Length.constant(0) if line is None else Length.of(line, self._channels)
            for line in (sight.line(one, axis), sight.line(other, axis))
        ]
        if lengths[0].classes != lengths[1].classes:
            cause = _cause(sight.visit.node, "it must have the shape of another tensor that loses other channels")
            for length in lengths:
                self._freeze(length, cause)

    def refuse(self, sight: Sight, reason: str) -> None:
        """See `Collector`."""
        for seen in _seen_in((*sight.visit.inputs, *sight.visit.results)):
            for one in seen.maps:
                self._channels.freeze(one.ids, _cause(sight.visit.node, reason))

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _place(self, sight: Sight) -> Address | None:
        return self._places.get(id(sight.visit.node))

    def _put(self, spot: _Spot, number: _Number, cause: Cause) -> None:
        """Several runs of one node must ask for the same, in proportion; code out of reach can only stay as it is."""
        known = self._numbers.setdefault(spot, number)
        adapts = number.adapts and known.adapts
        wrong = not (adapts or known == number or known.is_like(number))
        if wrong or (spot[0] is None and not adapts):
            for one in (known.wanted, known.read, number.wanted, number.read):
                if one is not None:
                    self._freeze(one, cause)

    def _freeze(self, length: Length, cause: Cause) -> None:
        self._channels.freeze(np.array([root for root, _ in length.classes], dtype=np.int64), cause)

    def _keep_something(self, visit: Visit) -> None:
        for seen in _seen_in(visit.results):
            for one in seen.maps:
                if len(one.axes) == 1:
                    self._note_axis(one.ids, visit.node)

    def _note_axis(self, ids: Ids, node: ir.Node) -> None:
        """Something of these coordinates must stay."""
        roots = frozenset(np.unique(self._channels.roots(ids)).tolist())
        if roots and FIXED not in roots and roots not in self._whole:
            self._whole[roots] = _cause(node, "nothing of an axis would be left without it")

    def keep_axes(self, stored: Iterable[frozenset[int]]) -> None:
        """Of every axis of every value one channel must stay; where no axis of a stored tensor sees to it, the first does.

        Args:
            stored: the classes along each axis of each stored tensor, none of which may lose all.
        """
        lines = set(stored)
        for roots, cause in self._whole.items():
            frozen = any(self._channels.is_frozen(root) for root in roots)
            if not frozen and roots not in lines and not any(line <= roots for line in lines):
                self._channels.keep_last(min(roots), cause)


def _cause(node: ir.Node, reason: str) -> Cause:
    return Cause(node.kind(), ir.source_of(node), reason)


def _seen_in(values: Any) -> list[Seen]:
    if isinstance(values, Seen):
        return [values]
    if isinstance(values, list | tuple):
        return [one for value in values for one in _seen_in(value)]
    return []
