"""Ops that multiply one half of an axis with the other half."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Maps, single


def gate_half(call: Call) -> list[Any]:
    """`glu`: a channel of the first half goes with its gate in the second."""
    value = call["self"]
    dims = len(value.shape)
    axis = int(call["dim"]) % dims
    line = call.line(value, axis, "one half of it gates the other")
    maps: Maps = call.uncovered(value.maps, axis)
    if line is not None:
        first, second = np.split(line, 2)
        call.channels.unite(first, second, call.cause("one half of it gates the other"))
        maps += single(first, axis, dims)
    return [call.result(maps)]


RULES: Mapping[str, Rule] = named("glu", gate_half)
