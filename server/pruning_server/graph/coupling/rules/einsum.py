"""Einstein sums: one letter is one axis of every operand that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps, map_at, squeezed

# torch itself knows a to z and A to Z; these stand for the axes of an ellipsis, from the last one on.
_ELLIPSIS = [chr(0x100 + number) for number in range(64)]


def einsum(call: Call) -> list[Any]:
    """A product over all letters, element by element, of which the letters that the result lacks are summed."""
    operands = list(call["tensors"])
    terms, right = _explicit(str(call["equation"]), [len(operand.shape) for operand in operands])
    return [call.result(contracted(call, operands, terms, right))]


def contracted(call: Call, operands: Sequence[Labelled], terms: Sequence[str], right: str) -> Maps:
    """Maps of a product of operands whose axes are named by the letters of their terms; `right` names the result's."""
    pairs = [_without_repeats(call, operand, term) for operand, term in zip(operands, terms, strict=True)]
    operands, terms = [operand for operand, _ in pairs], [term for _, term in pairs]
    letters = list(dict.fromkeys("".join(terms)))
    factors = [_spread(operand, term, letters) for operand, term in pairs]
    sizes = [max(shape[axis] for _, shape in factors) for axis in range(len(letters))]
    maps = call.combine(factors, sizes)
    gone = {axis for axis, letter in enumerate(letters) if letter not in right}
    for axis in sorted(gone):
        if _opens(call, operands, factors, maps, axis, gone):
            maps = call.uncovered(maps, axis)
            continue
        _mark(call, operands, factors, axis, gone)
        maps = _summed(call, maps, axis, gone, shared=sum(letters[axis] in term for term in terms) > 1)
    order = [letters.index(letter) for letter in right]
    rest = [axis for axis in range(len(letters)) if axis not in order]
    return tuple(_ordered(one, order, rest) for one in maps)


def _explicit(equation: str, dims: Sequence[int]) -> tuple[list[str], str]:
    """Terms and result with a letter for every axis: an ellipsis and a result that is not written are spelled out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = []
    for term, count in zip(left.split(","), dims, strict=True):
        before, dots, after = term.partition("...")
        hidden = _ELLIPSIS[: count - len(before) - len(after)] if dots else []
        terms.append(before + "".join(reversed(hidden)) + after)
    joined = "".join(terms)
    dots = "".join(letter for letter in reversed(_ELLIPSIS) if letter in joined)
    if not arrow:
        right = "..." + "".join(sorted(letter for letter in set(joined) - set(dots) if joined.count(letter) == 1))
    return terms, right.replace("...", dots)


def _without_repeats(call: Call, operand: Labelled, term: str) -> tuple[Labelled, str]:
    """A letter that comes twice in one term takes the diagonal, along which nothing may go."""
    repeated = [axis for axis, letter in enumerate(term) if term.count(letter) > 1]
    if not repeated:
        return operand, term
    maps = call.held(operand, repeated, "einsum takes a diagonal")
    gone = [axis for axis in repeated if term.index(term[axis]) != axis]
    kept = [axis for axis in range(len(term)) if axis not in gone]
    tensor = operand.tensor[tuple(0 if axis in gone else slice(None) for axis in range(len(term)))]
    return Labelled(tensor, squeezed(maps, gone), operand.stored), "".join(term[axis] for axis in kept)


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


def _mark(
    call: Call, operands: Sequence[Labelled], factors: Sequence[tuple[Maps, Any]], axis: int, gone: set[int]
) -> None:
    """The stored operands are the consumers; where there is none, two activations meet."""
    found = [
        (operand.stored, one)
        for operand, (maps, _) in zip(operands, factors, strict=True)
        for one in maps
        if one.covers(axis)
    ]
    for stored, one in found:
        if stored:
            call.channels.mark_consumer(one.ids)
        elif not set(one.axes) <= gone:
            call.channels.mark_heads(one.ids)
        elif not any(other for other, _ in found):
            call.channels.mark_contracted(one.ids, call.cause("two activations are multiplied and summed over it"))


def _opens(
    call: Call,
    operands: Sequence[Labelled],
    factors: Sequence[tuple[Maps, Any]],
    maps: Maps,
    axis: int,
    gone: set[int],
) -> bool:
    """Whether the dimensions of two activations' heads are summed, and may go instead of whole heads."""
    if call.channels.choices is None:
        return False
    covering = [operand for operand, (own, _) in zip(operands, factors, strict=True) if map_at(own, axis) is not None]
    found = [(one.ids, axis) for own, _ in factors for one in own if one.covers(axis) and not set(one.axes) <= gone]
    merged = map_at(maps, axis)
    if len(found) != 2 or len(covering) != 2 or merged is None or any(operand.stored for operand in covering):
        return False
    call.open_choice(((merged.ids, axis), *found))
    return True


def _summed(call: Call, maps: Maps, axis: int, gone: set[int], *, shared: bool) -> Maps:
    """A sum over one operand's axis holds it; of a split index, as of queries and keys, whole heads go together."""
    if not shared or any(one.covers(axis) and not set(one.axes) <= gone for one in maps):
        call.hold(maps, axis, "einsum sums over it")
    return call.uncovered(maps, axis)


def _ordered(one: AxisMap, order: Sequence[int], rest: Sequence[int]) -> AxisMap:
    ids = one.ids.transpose([*order, *rest])
    return AxisMap(ids.reshape(ids.shape[: len(order)]))


RULES: Mapping[str, Rule] = named("einsum", einsum)
