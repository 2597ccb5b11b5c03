"""Matrix products: the summed axes go together, the others go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps, squeezed


def linear(call: Call) -> list[Any]:
    """`input @ weight.T + bias`."""
    value, weight, bias = call["input"], call["weight"], call["bias"]
    return [call.result(_with_bias(call, transposed_product(call, value, weight), bias))]


def transposed_product(call: Call, value: Labelled, weight: Labelled) -> Maps:
    """Maps of `value @ weight.T` for a weight [out, in] or [in]."""
    call.contract(value, -1, weight, -1)
    dims = len(value.shape)
    rows = call.uncovered(weight.maps, len(weight.shape) - 1)
    kept = call.uncovered(value.maps, dims - 1)
    if len(weight.shape) == 1:
        return squeezed(call.combine([(kept, (*value.shape[:-1], 1))], (*value.shape[:-1], 1)), [dims - 1])
    out = weight.shape[0]
    across = tuple(AxisMap(one.ids.reshape(1, -1)) for one in rows)
    if dims == 1:
        return tuple(AxisMap(one.ids.reshape(-1)) for one in rows)
    return call.combine([(kept, (*value.shape[:-1], 1)), (across, (1, out))], (*value.shape[:-1], out))


def _with_bias(call: Call, maps: Maps, bias: Labelled | None) -> Maps:
    shape = tuple(call.results[0].shape)
    if bias is None:
        return maps
    return call.combine([(maps, shape), (bias.maps, bias.shape)], shape)


def matmul(call: Call) -> list[Any]:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`, with the broadcasting of `matmul`."""
    one, other = list(call.arguments.values())[:2]
    return [call.result(product(call, one, other))]


def product(call: Call, one: Labelled, other: Labelled) -> Maps:
    """Maps of `one @ other`."""
    call.contract(one, -1, other, -2 if len(other.shape) > 1 else -1)
    rows, row_shape = _factor(call, one, len(one.shape) - 1, at_end=True)
    columns, column_shape = _factor(call, other, max(len(other.shape) - 2, 0), at_end=False)
    dims = max(len(row_shape), len(column_shape))
    sizes = [_longest(row_shape, column_shape, axis - dims) for axis in range(dims)]
    maps = call.combine([(rows, row_shape), (columns, column_shape)], sizes)
    lost = [dims - 2] * (len(one.shape) == 1) + [dims - 1] * (len(other.shape) == 1)
    return squeezed(maps, lost) if lost else maps


def _factor(call: Call, value: Labelled, summed: int, *, at_end: bool) -> tuple[Maps, tuple[int, ...]]:
    """A factor without its summed axis, as an operand that is broadcast to the product's shape."""
    maps = call.uncovered(value.maps, summed)
    if len(value.shape) == 1:
        return (), (1, 1)
    shape = (*value.shape[:-1], 1) if at_end else (*value.shape[:-2], 1, value.shape[-1])
    return maps, shape


def _longest(one: Sequence[int], other: Sequence[int], axis: int) -> int:
    return max(shape[axis] if -axis <= len(shape) else 1 for shape in (one, other))


def added_product(call: Call) -> list[Any]:
    """`addmm`, `baddbmm`, `addmv`: a product plus a tensor."""
    addend, one, other = list(call.arguments.values())[:3]
    return [call.result(_with_bias(call, product(call, one, other), addend))]


RULES: Mapping[str, Rule] = {
    **named("linear", linear),
    **named("matmul mm bmm mv dot linalg_matmul", matmul),
    **named("addmm baddbmm addmv _addmm_activation", added_product),
}
