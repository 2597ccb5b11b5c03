"""Fused transformer layers: the kernels demand as many projected rows as the embedding is wide, so heads stay.

Only the hidden axis between the two feed-forward layers is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Labelled

_FEED_FORWARD = ("ffn_weight_1", "ffn_bias_1", "ffn_weight_2")


def encode(call: Call) -> list[Any]:
    """`_transformer_encoder_layer_fwd`: feed-forward weights [hidden, E] and [E, hidden]."""
    first, bias, second = (call[name] for name in _FEED_FORWARD)
    _freeze(call, "the fused encoder layer needs heads of the original width and number")
    call.held(first, [1], "the fused encoder layer normalizes it")
    call.held(second, [0], "the fused encoder layer normalizes it")
    lines = [call.line(one, axis, "it is hidden in a fused encoder layer") for one, axis in ((first, 0), (bias, 0))]
    columns = call.line(second, 1, "it is hidden in a fused encoder layer")
    if not all(one.stored for one in (first, bias, second)) or columns is None or any(line is None for line in lines):
        call.freeze([first, bias, second], "the weights of a fused encoder layer are computed")
        return [call.result(())]
    call.channels.mark_consumer(columns)
    for line in lines:
        call.channels.unite(columns, np.asarray(line), call.cause("it is hidden in a fused encoder layer"))
    return [call.result(())]


def attend(call: Call) -> list[Any]:
    """`_native_multi_head_attention`: everything stays."""
    _freeze(call, "fused attention needs heads of the original width and number")
    return [call.result((), index) if hasattr(result, "shape") else result for index, result in enumerate(call.results)]


def _freeze(call: Call, reason: str) -> None:
    others = [
        value for name, value in call.arguments.items() if name not in _FEED_FORWARD and isinstance(value, Labelled)
    ]
    call.freeze(others, reason)


RULES: Mapping[str, Rule] = {
    **named("_transformer_encoder_layer_fwd", encode),
    **named("_native_multi_head_attention", attend),
}
