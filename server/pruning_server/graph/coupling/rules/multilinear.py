"""Products that are einsums under another name: outer, inner, bilinear and tensor products, sums over a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.rules.einsum import contracted
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def outer(call: Call) -> list[Any]:
    """[N] and [M] give [N, M]."""
    one, other = list(call.arguments.values())[:2]
    return [call.result(contracted(call, [one, other], ["a", "b"], "ab"))]


def added_outer(call: Call) -> list[Any]:
    """`addr`: an outer product plus a tensor."""
    maps = contracted(call, [call["vec1"], call["vec2"]], ["a", "b"], "ab")
    return [call.result(_added(call, maps, call["self"]))]


def inner(call: Call) -> list[Any]:
    """The last axes are summed; the others follow one another."""
    one, other = call["self"], call["other"]
    if not one.shape or not other.shape:
        return [call.result(call.elementwise([one, other], call.results[0].shape))]
    left, right = _LETTERS[: len(one.shape) - 1], _LETTERS[len(one.shape) : len(one.shape) + len(other.shape) - 1]
    return [call.result(contracted(call, [one, other], [f"{left}Z", f"{right}Z"], left + right))]


def tensordot(call: Call) -> list[Any]:
    """The named axes are summed in pairs."""
    one, other = call["self"], call["other"]
    left = list(_LETTERS[: len(one.shape)])
    right = list(_LETTERS[len(left) : len(left) + len(other.shape)])
    summed = set()
    for axis, partner in zip(call["dims_self"], call["dims_other"], strict=True):
        right[partner] = left[axis]
        summed.add(left[axis])
    rest = "".join(letter for letter in (*left, *right) if letter not in summed)
    return [call.result(contracted(call, [one, other], ["".join(left), "".join(right)], rest))]


def bilinear(call: Call) -> list[Any]:
    """[.., I] and [.., J] with a weight [O, I, J] give [.., O]."""
    one, other, weight, bias = call["input1"], call["input2"], call["weight"], call["bias"]
    batch = _LETTERS[: len(one.shape) - 1]
    maps = contracted(call, [one, other, weight], [f"{batch}X", f"{batch}Y", "ZXY"], f"{batch}Z")
    return [call.result(maps if bias is None else _added(call, maps, bias))]


def added_batches(call: Call) -> list[Any]:
    """`addbmm`: [B, N, M] and [B, M, P] are summed over B and M, plus a tensor."""
    maps = contracted(call, [call["batch1"], call["batch2"]], ["bnm", "bmp"], "np")
    return [call.result(_added(call, maps, call["self"]))]


def convolve_in_time(call: Call) -> list[Any]:
    """`conv_tbc`: [T, B, I] with a weight [K, I, O] gives [T, B, O]."""
    value, weight, bias = call["self"], call["weight"], call["bias"]
    given = Labelled(value.tensor, call.held(value, [0], "the kernel slides over this axis"), value.stored)
    kept: Maps = ()
    for one in weight.maps:
        if one.covers(0):
            call.channels.freeze(one.ids, call.cause("it is the extent of a kernel", expected=True))
        else:
            kept += (AxisMap(one.ids[0]),)
    kernel = Labelled(weight.tensor[0], kept, weight.stored)
    return [call.result(_added(call, contracted(call, [given, kernel], ["tbi", "io"], "tbo"), bias))]


def _added(call: Call, maps: Maps, addend: Labelled) -> Maps:
    shape = tuple(call.results[0].shape)
    return call.combine([(maps, shape), (addend.maps, addend.shape)], shape)


RULES: Mapping[str, Rule] = {
    **named("outer ger", outer),
    **named("addr", added_outer),
    **named("inner", inner),
    **named("tensordot", tensordot),
    **named("bilinear", bilinear),
    **named("addbmm", added_batches),
    **named("conv_tbc", convolve_in_time),
}
