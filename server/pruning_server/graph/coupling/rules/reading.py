"""Ops that read numbers off a tensor: sizes remember their axis, elements freeze what they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Labelled, LabelledInt


def size(call: Call) -> list[Any]:
    """The length of a labelled axis follows its channels."""
    value, axis = call["self"], call["dim"]
    if axis is None:
        return [[_length(value, number) for number in range(len(value.shape))]]
    return [_length(value, int(axis) % len(value.shape))]


def _length(value: Labelled, axis: int) -> int:
    found = value.map_at(axis)
    return value.shape[axis] if found is None else LabelledInt.read(value.shape[axis], found, axis)


def length(call: Call) -> list[Any]:
    """`len` of a tensor is the length of its first axis."""
    return [_length(call.first(), 0)]


def nothing(call: Call) -> list[Any]:
    """Types, devices and numbers of axes do not change with the channels."""
    return list(call.results)


def elements(call: Call) -> list[Any]:
    """A number that depends on all elements, or on how many there are."""
    for value in call.arguments.values():
        call.freeze(value, "a number is computed from it")
    return [call.result((), index) if hasattr(result, "shape") else result for index, result in enumerate(call.results)]


RULES: Mapping[str, Rule] = {
    **named("size", size),
    **named("len", length),
    **named(
        """
        dim is_floating_point is_complex get_device device result_type is_contiguous requires_grad_ is_signed is_conj is_neg
        is_inference is_leaf element_size
        """,
        nothing,
    ),
    **dict.fromkeys(
        [
            "prim::dtype",
            "prim::device",
            "prim::layout",
            "prim::is_cuda",
            "prim::is_cpu",
            "prim::is_nested",
            "prim::is_sparse",
            "prim::is_quantized",
            "prim::is_meta",
            "prim::requires_grad",
            "prim::type",
        ],
        nothing,
    ),
    **named(
        """
        numel stride storage_offset item Bool Int Float IntImplicit FloatImplicit ScalarImplicit ComplexImplicit
        equal allclose is_nonzero _local_scalar_dense
        """,
        elements,
    ),
}
