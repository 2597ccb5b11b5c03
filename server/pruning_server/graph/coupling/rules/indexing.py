"""Ops that read or write at places that a tensor names: the axis that is indexed stays, the others keep their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps, as_tensor, from_tensor, tensors_in

_INDEXED = "elements are picked along it by an index"
_WHICH = "it says which elements are taken"


def gather(call: Call) -> list[Any]:
    """`gather`, `take_along_dim`: off the indexed axis, the value and the index lie side by side."""
    plain = "index" in call.arguments
    value, index = call["self"], call["index" if plain else "indices"]
    if call["dim"] is None or not value.shape:
        return freeze_all(call)
    axis = int(call["dim"]) % len(value.shape)
    shape = _without(call.results[0].shape, axis)
    if plain:
        _hold_cut(call, [value, index], axis)
    operands = [
        (_held(call, one, axis, shape), shape if plain else _without(one.shape, axis)) for one in (value, index)
    ]
    return [call.result(call.combine(operands, shape))]


def scatter(call: Call) -> list[Any]:
    """`scatter` and its kin: as `gather`, but the value's labels go on."""
    value = call["self"]
    if not value.shape:
        return freeze_all(call)
    axis = int(call["dim"]) % len(value.shape)
    parts = list(tensors_in([value, call["index"], call["src"]]))
    shape = _without(value.shape, axis)
    _hold_cut(call, parts, axis)
    operands = [(_held(call, one, axis, shape), shape) for one in parts]
    return [call.result(call.combine(operands, shape))]


def index_into(call: Call) -> list[Any]:
    """`index_add`, `index_copy`, `index_reduce`, `index_fill`: a list of places along one axis."""
    value, source = call["self"], call["source"]
    call.freeze(call["index"], _WHICH)
    if not value.shape:
        return freeze_all(call)
    axis = int(call["dim"]) % len(value.shape)
    operands = [(call.held(value, [axis], _INDEXED), _without(value.shape, axis))]
    if isinstance(source, Labelled):
        operands.append((call.held(source, [axis], _INDEXED), _without(source.shape, axis)))
    return [call.result(call.combine(operands, _without(value.shape, axis)))]


def index_put(call: Call) -> list[Any]:
    """The values are laid out like what the same indices would take."""
    value, indices, source = call["self"], list(call["indices"]), call["values"]
    if len(indices) == 1 and _is_mask(indices[0]) and indices[0].shape == value.shape and source.tensor.numel() == 1:
        return [call.result(call.elementwise([value, indices[0]], value.shape))]
    call.freeze(indices, _WHICH)
    maps = call.held(value, indexed_axes(indices), _INDEXED)
    places = [None if one is None else one.tensor for one in indices]
    taken = []
    for one in maps:
        labels = as_tensor(one, value.shape)
        taken.append(AxisMap(from_tensor(torch.ops.aten.index.Tensor(labels, places))))
    shape = tuple(torch.ops.aten.index.Tensor(value.tensor, places).shape)
    call.combine([(tuple(taken), shape), (source.maps, source.shape)], shape)
    return [call.result(maps)]


def indexed_axes(indices: Sequence[Any]) -> list[int]:
    """The axes that a list of index tensors, or None, goes over; a mask goes over as many as it has."""
    axes: list[int] = []
    position = 0
    for one in indices:
        width = one.tensor.dim() if _is_mask(one) else 1
        axes += list(range(position, position + width)) if one is not None else []
        position += width
    return axes


def _is_mask(value: Any) -> bool:
    return isinstance(value, Labelled) and value.tensor.dtype in (torch.bool, torch.uint8)


def freeze_all(call: Call) -> list[Any]:
    """How many elements there are, or where they come from, depends on values."""
    call.freeze(list(call.arguments.values()), "its elements are taken or counted one by one")
    return [call.result((), index) if hasattr(result, "shape") else result for index, result in enumerate(call.results)]


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _hold_cut(call: Call, parts: Sequence[Labelled], indexed: int) -> None:
    """Off the indexed axis, where the lengths differ only the first elements take part: nothing may go."""
    for axis in range(len(parts[0].shape)):
        if axis != indexed and len({one.shape[axis] for one in parts}) > 1:
            for one in parts:
                call.held(one, [axis], "only its first elements take part")


def _held(call: Call, value: Labelled, indexed: int, shape: Sequence[int]) -> Maps:
    """Maps without the indexed axis, and without those that are longer or shorter than the result's."""
    maps = call.held(value, [indexed], _INDEXED)
    for axis, size in enumerate(shape):
        if value.shape[axis] not in (1, size):
            maps = call.uncovered(maps, axis)
    return maps


RULES: Mapping[str, Rule] = {
    **named("gather take_along_dim", gather),
    **named("scatter scatter_add scatter_reduce", scatter),
    **named("index_add index_copy index_reduce index_fill", index_into),
    **named("index_put _index_put_impl", index_put),
    **named(
        """
        masked_select masked_scatter take put nonzero nonzero_numpy argwhere unique_consecutive _unique _unique2
        unique_dim bincount histc searchsorted bucketize one_hot
        """,
        freeze_all,
    ),
}
