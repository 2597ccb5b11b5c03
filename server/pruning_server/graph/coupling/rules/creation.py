"""Tensors filled with one value: every coordinate is like every other, so each may go with what it meets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Maps, single


def uniform(call: Call) -> list[Any]:
    """New elements on every axis, in classes of their own until they meet others."""
    shape = call.results[0].shape
    maps: Maps = ()
    for axis, size in enumerate(shape):
        if size > 1:
            copies = call.channels.create(size)
            if "zeros" not in call.op:
                call.channels.mark_shifted(copies)  # nothing stored makes them zero
            maps += single(copies, axis, len(shape))
    return [call.result(maps)]


RULES: Mapping[str, Rule] = named("zeros ones full empty new_zeros new_ones new_full new_empty", uniform)
