"""Convolutions of one to three dimensions: plain, depthwise, grouped, transposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pruning_server.graph.channels import Ids, unlabelled
from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Labelled, Maps, single

_SLIDES = "the kernel slides over this axis"


@dataclass(frozen=True)
class _Parts:
    """Labels of a convolution's channels: of the input, and of the weight's two channel axes."""

    groups: int
    given: Ids | None
    taken: Ids
    made: Ids


def convolve(call: Call) -> list[Any]:
    """Input channels go with the kernel's, and the kernel's output channels with the bias."""
    value, weight, bias = call["input"], call["weight"], call["bias"]
    transposed = bool(call["transposed"]) or "transpose" in call.op
    space = len(weight.shape) - 2
    axis = len(value.shape) - space - 1
    call.held(value, range(axis + 1, len(value.shape)), _SLIDES)
    for one in weight.maps:
        if min(one.axes) >= 2:
            call.channels.freeze(one.ids, call.cause("it is the extent of a kernel", expected=True))
    taken, made = (0, 1) if transposed else (1, 0)
    parts = _Parts(
        groups=int(call["groups"]),
        given=call.line(value, axis, "a convolution sums over it"),
        taken=_line(call, weight, taken),
        made=_line(call, weight, made),
    )
    out = (_transposed if transposed else _forward)(call, parts, weight)
    dims = len(call.results[0].shape)
    maps: Maps = call.uncovered(call.held(value, range(axis + 1, dims), _SLIDES), axis)
    if not (out < 0).all():
        maps += single(out, axis, dims)
    if bias is not None:
        ones = [1] * dims
        ones[axis] = len(out)
        line = call.line(bias, 0, "it is added to every output channel")
        added = single(line, axis, dims) if line is not None else ()
        maps = call.combine([(maps, tuple(call.results[0].shape)), (added, ones)], tuple(call.results[0].shape))
    return [call.result(maps)]


def _line(call: Call, weight: Labelled, axis: int) -> Ids:
    line = call.line(weight, axis, "it is an axis of a kernel")
    return unlabelled([weight.shape[axis]]) if line is None else line


def _forward(call: Call, parts: _Parts, weight: Labelled) -> Ids:
    groups, per_group = parts.groups, weight.shape[1]
    made = parts.made.reshape(groups, -1)
    if groups == 1:
        _sum(call, parts.given, parts.taken, weight)
    elif _by_rows(parts.given, groups, max(per_group, made.shape[1])):
        whole = call.cause("a grouped convolution loses whole groups")
        given = _rows(parts.given, groups)
        call.channels.freeze(parts.taken, call.cause("all groups need this axis"))
        call.channels.unite_along(given, 1, whole)
        call.channels.unite_along(made, 1, whole)
        call.channels.unite(given[:, :1], made[:, :1], whole)
    else:
        equal = call.cause("the groups of a convolution must stay equally wide")
        call.channels.unite_along(made, 0, equal)
        _sum_each(call, parts, parts.taken, weight)
    return parts.made


def _transposed(call: Call, parts: _Parts, weight: Labelled) -> Ids:
    groups, per_group = parts.groups, weight.shape[1]
    if groups == 1:
        _sum(call, parts.given, parts.taken, weight)
        return parts.made
    taken = parts.taken.reshape(groups, -1)
    _sum(call, parts.given, parts.taken, weight)
    if _by_rows(parts.given, groups, max(per_group, taken.shape[1])):
        call.channels.freeze(parts.made, call.cause("all groups need this axis"))
        call.channels.unite_along(taken, 1, call.cause("a grouped convolution loses whole groups"))
        return np.repeat(taken[:, 0], per_group)
    call.channels.unite_along(taken, 0, call.cause("the groups of a convolution must stay equally wide"))
    return np.tile(parts.made, groups)


def _by_rows(given: Ids | None, groups: int, widest: int) -> bool:
    """Whether whole groups are removed rather than the same channels of every group: whichever is finer."""
    return given is not None and groups >= widest


def _rows(given: Ids | None, groups: int) -> Ids:
    if given is None:
        return unlabelled([groups, 1])
    rows: Ids = given.reshape(groups, -1)
    return rows


def _sum(call: Call, given: Ids | None, taken: Ids, weight: Labelled) -> None:
    """Unites the input's channels with the weight's, which become consumers."""
    if weight.stored:
        call.channels.mark_consumer(taken)
    elif given is not None:  # a computed kernel
        call.channels.mark_contracted(taken, call.cause("two activations are multiplied and summed over it"))
    fixed = unlabelled([len(taken)]) if given is None else given
    call.channels.unite(fixed, taken, call.cause("it is summed with an axis that always stays"))


def _sum_each(call: Call, parts: _Parts, taken: Ids, weight: Labelled) -> None:
    """Every group of input channels meets the same axis of the weight."""
    if len(taken) == 1:  # depthwise: no channel of a group can go alone
        if parts.given is not None:
            call.channels.freeze(parts.given, call.cause("every group has one input channel"))
        return
    for row in _rows(parts.given, parts.groups):
        _sum(call, row if parts.given is not None else None, taken, weight)


RULES: Mapping[str, Rule] = named(
    """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d _convolution _convolution_mode
    convolution
    """,
    convolve,
)
