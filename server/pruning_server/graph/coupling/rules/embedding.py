"""Tables of which rows are picked by the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, single, tensors_in


def embed(call: Call) -> list[Any]:
    """The rows stay; the columns are the result's last axis."""
    weight, indices = call["weight"], call["indices"]
    call.held(weight, [0], "rows are picked by the input")
    dims = len(call.results[0].shape)
    column = call.line(weight, 1, "it is the width of an embedding")
    maps = tuple(AxisMap(one.ids[..., None]) for one in indices.maps)
    if column is not None:
        maps += single(column, dims - 1, dims)
    return [call.result(maps)]


def embed_bags(call: Call) -> list[Any]:
    """As `embed`; the first result holds one row per bag."""
    weight = call["weight"]
    call.held(weight, [0], "rows are picked by the input")
    call.freeze([value for value in tensors_in(list(call.arguments.values())) if value is not weight], "it picks rows")
    column = call.line(weight, 1, "it is the width of an embedding")
    maps = single(column, 1, 2) if column is not None else ()
    return [call.result(maps), *(call.result((), index) for index in range(1, len(call.results)))]


RULES: Mapping[str, Rule] = {
    **named("embedding", embed),
    **named("embedding_bag _embedding_bag", embed_bags),
}
