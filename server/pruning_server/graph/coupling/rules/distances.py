"""Distances and similarities: the axis that they go over stays, the others keep their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps, squeezed

_OVER = "a distance goes over this axis"


def between_rows(call: Call) -> list[Any]:
    """`cdist`: [.., P, M] and [.., R, M] give [.., P, R]."""
    one, other = call["x1"], call["x2"]
    rows = call.held(one, [-1], _OVER)
    turned = tuple(AxisMap(found.ids.swapaxes(-1, -2)) for found in call.held(other, [-1], _OVER))
    shape = tuple(call.results[0].shape)
    operands = [(rows, (*one.shape[:-1], 1)), (turned, (*other.shape[:-2], 1, other.shape[-2]))]
    return [call.result(call.combine(operands, shape))]


def along_axis(call: Call) -> list[Any]:
    """`cosine_similarity` over an axis of both after broadcasting, `pairwise_distance` over the last one."""
    one, other = call["x1"], call["x2"]
    dims = max(len(one.shape), len(other.shape))
    axis = dims - 1 if call["dim"] is None else int(call["dim"]) % dims
    operands = [_held(call, value, axis - dims) for value in (one, other)]
    shape = [max(sizes) for sizes in zip(*(_padded(shape, dims) for _, shape in operands), strict=True)]
    maps = call.combine(operands, shape)
    return [call.result(maps if call["keepdim"] else squeezed(maps, [axis]))]


def _held(call: Call, value: Labelled, axis: int) -> tuple[Maps, tuple[int, ...]]:
    """A value without an axis, counted from the end; it may have fewer axes."""
    if -axis > len(value.shape):
        return value.maps, value.shape
    maps = call.held(value, [axis], _OVER)
    sizes = list(value.shape)
    sizes[axis] = 1
    return maps, tuple(sizes)


def _padded(shape: tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (1,) * (dims - len(shape)) + shape


RULES: Mapping[str, Rule] = {
    **named("cdist", between_rows),
    **named("cosine_similarity pairwise_distance", along_axis),
}
