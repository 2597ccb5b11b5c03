"""Fused scaled dot product attention: heads go as a whole, or lose the same dimensions if its scale can be written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pruning_server.graph.channels import Ids
from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps


def attend(call: Call) -> list[Any]:
    """[..., L, E] queries, [..., S, E] keys, [..., S, V] values: S and L stay, V goes on; E is held if only heads may go.

    Where several heads of queries share one of keys and values, they go with it.
    """
    query, key, value = call["query"], call["key"], call["value"]
    if call["enable_gqa"]:
        key, value = _repeated(key, query), _repeated(value, query)
    call.contract(query, -1, key, -1, _kept_alike(query, value))
    if call.channels.choices is None or not (call["scale"] is not None or call.is_constant("scale")):
        for one in (query, key):
            call.hold(one.maps, len(one.shape) - 1, "the scale of attention depends on its length")
    query, key = _summed(call, query), _summed(call, key)
    operands = [_rows(call, query, keep=-2), _rows(call, key, keep=None), _rows(call, value, keep=-1)]
    mask = call["attn_mask"]
    if isinstance(mask, Labelled):
        operands.append(_rows(call, mask, keep=-2))
    return [call.result(call.combine(operands, tuple(call.results[0].shape)))]


def _repeated(value: Labelled, query: Labelled) -> Labelled:
    """Heads of keys or values [.., H, S, E], each as often in a row as there are queries' heads that share it."""
    heads, shared = query.shape[-3], value.shape[-3]
    times = heads // shared
    maps: Maps = ()
    for one in value.maps:
        maps += (AxisMap(np.repeat(one.ids, times, -3) if one.covers(one.ids.ndim - 3) else one.ids),)
    return Labelled(value.tensor.repeat_interleave(times, -3), maps, value.stored)


def _kept_alike(query: Labelled, value: Labelled) -> list[tuple[Ids, int]]:
    """Values as wide as queries lose the same dimensions: kernels for other widths are two to three times as slow."""
    own = value.map_at(-1)
    if own is None or len(own.axes) < 2 or query.shape[-1] != value.shape[-1]:
        return []
    return [(own.ids, own.ids.ndim - 1)]


def _summed(call: Call, value: Labelled) -> Labelled:
    """Queries or keys without the labels of the axis that was contracted."""
    return Labelled(value.tensor, call.uncovered(value.maps, len(value.shape) - 1), value.stored)


def _rows(call: Call, value: Labelled, keep: int | None) -> tuple[Maps, tuple[int, ...]]:
    """A tensor as an operand that is broadcast to the result: of its last two axes only `keep` is the result's."""
    dims = len(value.shape)
    gone = [axis for axis in (dims - 2, dims - 1) if keep is None or axis != dims + keep]
    maps = call.held(value, gone, "attention goes over this axis")
    shape = tuple(1 if axis in gone else size for axis, size in enumerate(value.shape))
    return maps, shape


RULES: Mapping[str, Rule] = named("scaled_dot_product_attention", attend)
