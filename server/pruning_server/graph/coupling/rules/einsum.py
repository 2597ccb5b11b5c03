"""Einstein sums: one letter is one axis of every operand that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps


def einsum(call: Call) -> list[Any]:
    """A product over all letters, element by element, of which the letters that the result lacks are summed."""
    operands = list(call["tensors"])
    left, arrow, right = str(call["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "..." in left or any(len(set(term)) != len(term) for term in terms):
        call.freeze(operands, "this kind of einsum is not followed")
        return [call.result(())]
    letters = list(dict.fromkeys(left.replace(",", "")))
    factors = [_spread(operand, term, letters) for operand, term in zip(operands, terms, strict=True)]
    sizes = [max(shape[axis] for _, shape in factors) for axis in range(len(letters))]
    maps = call.combine(factors, sizes)
    for axis, letter in enumerate(letters):
        if letter not in right:
            _mark(call, operands, factors, axis)
            maps = _summed(call, maps, axis, shared=sum(letter in term for term in terms) > 1)
    order = [letters.index(letter) for letter in right]
    rest = [axis for axis in range(len(letters)) if axis not in order]
    return [call.result(tuple(_ordered(one, order, rest) for one in maps))]


def _spread(operand: Labelled, term: str, letters: Sequence[str]) -> tuple[Maps, tuple[int, ...]]:
    """An operand with one axis per letter of the whole equation."""
    order = sorted(range(len(term)), key=lambda axis: letters.index(term[axis]))
    missing = [axis for axis, letter in enumerate(letters) if letter not in term]
    maps = []
    for one in operand.maps:
        ids = one.ids.transpose(order)
        for axis in missing:
            ids = np.expand_dims(ids, axis)
        maps.append(AxisMap(ids))
    lengths = dict(zip(term, operand.shape, strict=True))
    return tuple(maps), tuple(lengths.get(letter, 1) for letter in letters)


def _mark(call: Call, operands: Sequence[Labelled], factors: Sequence[tuple[Maps, Any]], axis: int) -> None:
    for operand, (maps, _) in zip(operands, factors, strict=True):
        for one in maps:
            if operand.stored and one.covers(axis):
                call.channels.mark_consumer(one.ids)


def _summed(call: Call, maps: Maps, axis: int, *, shared: bool) -> Maps:
    """A sum over one operand's axis holds it; of a split index, as of queries and keys, whole heads go together."""
    if not shared or any(one.covers(axis) and len(one.axes) > 1 for one in maps):
        call.hold(maps, axis, "einsum sums over it")
    return call.uncovered(maps, axis)


def _ordered(one: AxisMap, order: Sequence[int], rest: Sequence[int]) -> AxisMap:
    ids = one.ids.transpose([*order, *rest])
    return AxisMap(ids.reshape(ids.shape[: len(order)]))


RULES: Mapping[str, Rule] = named("einsum", einsum)
