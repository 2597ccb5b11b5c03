"""Fused attention and transformer layers: where something of them goes, surgery writes the op out with stock ops.

What the written-out form could lose is free: whole heads or the same dimensions of every head, the hidden axis between the
two feed-forward layers, and the widths of what goes in and comes out where no norm holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pruning_server.graph.channels import Ids
from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Labelled, single

_FEED_FORWARD = ("ffn_weight_1", "ffn_bias_1", "ffn_weight_2")
_ATTENTION = ("qkv_weight", "qkv_bias", "proj_weight", "proj_bias")
_HIDDEN = "it is hidden in a fused encoder layer"
_NORMED = "the fused encoder layer normalizes it"


def encode(call: Call) -> list[Any]:
    """`_transformer_encoder_layer_fwd`: feed-forward weights [hidden, E] and [E, hidden]; E is normalized."""
    first, bias, second = (call[name] for name in _FEED_FORWARD)
    others = [
        value
        for name, value in call.arguments.items()
        if name not in {*_FEED_FORWARD, *_ATTENTION, "mask"} and isinstance(value, Labelled)
    ]
    call.freeze(others, _NORMED)
    call.held(first, [1], _NORMED)
    call.held(second, [0], _NORMED)
    call.held(call["qkv_weight"], [1], _NORMED)
    call.held(call["proj_weight"], [0], _NORMED)
    call.freeze(call["proj_bias"], _NORMED)
    if call["src"].tensor.is_nested:
        _freeze_attention(call, "nested tensors need the fused kernel, whose heads keep number and width")
    else:
        _attention(call, int(call["num_heads"]))
    lines = [call.line(one, axis, _HIDDEN) for one, axis in ((first, 0), (bias, 0))]
    columns = call.line(second, 1, _HIDDEN)
    if not all(one.stored for one in (first, bias, second)) or columns is None or any(line is None for line in lines):
        call.freeze([first, bias, second], "the weights of a fused encoder layer are computed")
        return [call.result(())]
    call.channels.mark_consumer(columns)
    for line in lines:
        call.channels.unite(columns, np.asarray(line), call.cause(_HIDDEN))
    return [call.result(())]


def attend(call: Call) -> list[Any]:
    """`_native_multi_head_attention`: [B, T, E] queries, keys and values to [B, T, E] and the weights of attention."""
    inputs = [call[name] for name in ("query", "key", "value")]
    weights = call.results[1]
    output = call.results[0]
    if any(one.tensor.is_nested for one in inputs):
        reason = "nested tensors need the fused kernel, whose heads keep number and width"
    elif weights is None and 1 not in call.unused:
        reason = "the weights that fused attention was told to leave out are passed on"
    else:
        reason = ""
    heads = None if reason else _attention(call, int(call["num_head"]))
    if heads is None:
        call.freeze(list(call.arguments.values()), reason or "the weights of fused attention are computed")
        _freeze_attention(call, reason)
        return [call.result((), index) if one is not None else one for index, one in enumerate(call.results)]
    for one in inputs:
        call.contract(one, 2, call["qkv_weight"], 1)
        call.held(one, [0, 1], "attention goes over this axis")
    rows = call["proj_weight"].map_at(0)
    made = () if rows is None else single(rows.ids.reshape(-1), 2, 3)
    bias = call["proj_bias"]
    maps = call.combine([(made, tuple(output.shape)), (bias.maps, bias.shape)], tuple(output.shape))
    return [call.result(maps), _shares(call, heads)]


def _shares(call: Call, heads: Ids) -> Labelled | None:
    """The weights of attention: [B, H, T, T], or [B, T, T] where they are averaged over heads."""
    weights = call.results[1]
    if not isinstance(weights, torch.Tensor):
        return None
    if weights.dim() == 4:
        return call.result(single(heads.reshape(-1), 1, 4), 1)
    if 1 not in call.unused:
        call.channels.freeze(heads, call.cause("the weights of attention are averaged over heads"))
    return call.result((), 1)


def _attention(call: Call, count: int) -> Ids | None:
    """Couples packed rows [3 E] with projected columns [E]; returns what labels the heads, None where all is frozen."""
    weight, bias, projection = call["qkv_weight"], call["qkv_bias"], call["proj_weight"]
    cause = call.cause("fused attention splits it into heads")
    lines = [call.line(one, axis, cause.reason) for one, axis in ((weight, 0), (bias, 0), (projection, 1))]
    rows, biases, columns = lines
    if not all(one.stored for one in (weight, bias, projection)) or rows is None or biases is None or columns is None:
        _freeze_attention(call, "the weights of fused attention are computed")
        return None
    channels = call.channels
    channels.unite(rows, biases, cause)
    channels.mark_consumer(columns)
    queries, keys, values = rows.reshape(3, count, -1)
    channels.unite(values, columns.reshape(count, -1), cause)
    for box in (queries, keys, values):
        channels.require_box(box)
    heads = _heads(call, queries, keys, values)
    _mask(call, heads)
    return heads


def _heads(call: Call, queries: Ids, keys: Ids, values: Ids) -> Ids:
    """Boxes [heads, dimensions] of queries, keys and values lose whole heads, or dimensions where that is open."""
    cause, channels = call.cause("its heads go as a whole"), call.channels
    call.open_choice(((queries, 1), (keys, 1)))
    found = [channels.choices.heads_of(box, 1) for box in (queries, keys)] if channels.choices is not None else []
    first, second = (*found, None, None)[:2]
    if first is None or second is None:
        for box in (queries, keys, values):
            channels.unite_along(box, 1, cause)
            channels.unite(box, queries, cause)
        channels.mark_heads(queries)
        return queries[:, :1]
    channels.unite(first, second, cause)
    channels.meet(values, first, cause)
    return first


def _mask(call: Call, heads: Ids) -> None:
    """A mask [B, H, T, T] has an axis of heads, which must go with them; any other has none."""
    mask = call["mask"]
    if not isinstance(mask, Labelled):
        return
    per_head = len(mask.shape) == 4 and mask.shape[1] > 1
    call.held(mask, [axis for axis in range(len(mask.shape)) if not per_head or axis != 1], "it is a mask of attention")
    if not per_head:
        return
    line = call.line(mask, 1, "it is a mask of attention")
    if line is None:
        call.channels.freeze(heads, call.cause("every head has its own mask"))
    else:
        call.channels.unite(heads.reshape(-1), line, call.cause("every head has its own mask"))


def _freeze_attention(call: Call, reason: str) -> None:
    call.freeze([call[name] for name in (*_ATTENTION, "mask")], reason)


RULES: Mapping[str, Rule] = {
    **named("_transformer_encoder_layer_fwd", encode),
    **named("_native_multi_head_attention", attend),
}
