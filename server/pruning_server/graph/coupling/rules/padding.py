"""Padding: constants make new channels that nothing stores, other ways repeat what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Labelled, Maps, single


def pad(call: Call) -> list[Any]:
    """`pad` and `constant_pad_nd`; widths come in pairs from the last axis on."""
    value, widths = call["self"], [int(width) for width in call["pad"]]
    constant = (call["mode"] or "constant") == "constant"
    maps = value.maps
    for number in range(len(widths) // 2):
        axis = len(value.shape) - 1 - number
        before, after = widths[2 * number : 2 * number + 2]
        if value.map_at(axis) is None or not (before or after):
            continue
        if constant:
            maps = call.uncovered(maps, axis) + _padded(call, value, axis, (before, after))
        else:
            call.hold(maps, axis, "it is padded with what is there")
            maps = call.uncovered(maps, axis)
    return [call.result(maps)]


def _padded(call: Call, value: Labelled, axis: int, widths: Sequence[int]) -> Maps:
    line = call.line(value, axis, "it is padded")
    if line is None:
        return ()
    before, after = widths
    line = line[max(-before, 0) : len(line) - max(-after, 0)]
    create = call.channels.create
    added = [create(max(width, 0)) for width in widths]
    if call["value"]:
        call.channels.mark_shifted(np.concatenate(added))  # nothing stored makes them zero
    return single(np.concatenate([added[0], line, added[1]]), axis, len(value.shape))


def pad_space(call: Call) -> list[Any]:
    """Reflection and replication of the last axes."""
    value = call["self"]
    dims = len(value.shape)
    return [call.result(call.held(value, range(dims - len(call["padding"]) // 2, dims), "it is padded"))]


RULES: Mapping[str, Rule] = {
    **named("pad constant_pad_nd", pad),
    **named(
        """
        reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d
        """,
        pad_space,
    ),
}
