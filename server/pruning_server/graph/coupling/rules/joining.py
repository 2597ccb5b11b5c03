"""Ops that put tensors one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pruning_server.graph.channels import Ids, unlabelled
from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps, is_unlabelled, single


def concatenate(call: Call) -> list[Any]:
    """Along the joined axis every part keeps its channels; on the other axes the parts go together."""
    return _concatenated(call, int(call["dim"] or 0) % call.results[0].dim())


def stack_sides(call: Call) -> list[Any]:
    """`hstack`, `vstack`, `dstack` of tensors that have the result's axes; others stay as they are."""
    dims, parts = call.results[0].dim(), list(call["tensors"])
    if any(len(part.shape) != dims for part in parts):
        call.freeze(parts, "axes are added to it before it is joined")
        return [call.result(())]
    axis = {"aten::vstack": 0, "aten::row_stack": 0, "aten::dstack": 2}.get(call.op, 1)
    return _concatenated(call, min(axis, dims - 1))


def broadcast(call: Call) -> list[Any]:
    """`broadcast_tensors`: every result has the labels that the tensors have together."""
    maps = call.elementwise(list(call["tensors"]), call.results[0][0].shape)
    return [[Labelled(one, maps) for one in call.results[0]]]


def _concatenated(call: Call, axis: int) -> list[Any]:
    parts = [part for part in call["tensors"] if part.tensor.dim() == call.results[0].dim()]
    shape = tuple(call.results[0].shape)
    blocks = [part.map_at(axis) for part in parts]
    joint = _joint(call, blocks, axis)
    if joint is not None:
        rest = [tuple(one for one in part.maps if not one.covers(axis)) for part in parts]
        sides = [(maps, _shrunk(part.shape, axis)) for maps, part in zip(rest, parts, strict=True)]
        return [call.result((*_across(call, sides, shape, joint), joint))]
    lines = [call.line(part, axis, "it is joined with another tensor") for part in parts]
    others = [(call.uncovered(part.maps, axis), _shrunk(part.shape, axis)) for part in parts]
    return [call.result(call.combine(others, _shrunk(shape, axis)) + _joined(lines, parts, axis))]


def _joint(call: Call, blocks: Sequence[AxisMap | None], axis: int) -> AxisMap | None:
    """Parts whose channels lie on the same several axes are a block of these axes again; None where they are not."""
    found = [one.ids for one in blocks if one is not None]
    sides = {_shrunk(ids.shape, axis) for ids in found}
    if len(found) < len(blocks) or len(sides) != 1 or max(next(iter(sides))) == 1:
        return None
    ids = np.concatenate(found, axis)
    call.channels.require_box(ids)
    return AxisMap(ids)


def _across(call: Call, sides: Sequence[tuple[Maps, tuple[int, ...]]], shape: Sequence[int], joint: AxisMap) -> Maps:
    """The other labels of the parts; axes that the block covers are no news to them."""
    free = tuple(1 if axis in joint.axes else size for axis, size in enumerate(shape))
    return call.combine([(maps, free) for maps, _ in sides], free)


def _joined(lines: Sequence[Ids | None], parts: Sequence[Labelled], axis: int) -> Maps:
    whole = [unlabelled([part.shape[axis]]) if line is None else line for line, part in zip(lines, parts, strict=True)]
    joined = np.concatenate(whole)
    return () if is_unlabelled(joined) else single(joined, axis, len(parts[0].shape))


def _shrunk(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def stack(call: Call) -> list[Any]:
    """The parts lie side by side along a new axis, so their channels go together."""
    parts = list(call["tensors"])
    shape = tuple(call.results[0].shape)
    axis = int(call["dim"] or 0) % len(shape)
    maps = call.elementwise(parts, parts[0].shape)
    return [call.result(tuple(AxisMap(np.expand_dims(one.ids, axis)) for one in maps))]


RULES: Mapping[str, Rule] = {
    **named("cat concat concatenate", concatenate),
    **named("stack", stack),
    **named("hstack vstack dstack column_stack row_stack", stack_sides),
    **named("broadcast_tensors", broadcast),
}
