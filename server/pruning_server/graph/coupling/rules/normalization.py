"""Normalizations: per channel they go with the channel, over channels they freeze it, by groups whole groups go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


def per_channel(call: Call) -> list[Any]:
    """Batch and instance norm: scales, shifts and statistics go with axis 1 of the input.

    Channels on the axes that statistics go over stay; those of a batch's do in training mode.
    """
    value = call["input"]
    axes = [axis for axis in range(len(value.shape)) if axis > 1 or (axis == 0 and "instance" not in call.op)]
    held = Labelled(value.tensor, call.held(value, axes, "it is normalized over this axis"), value.stored)
    return call.alike(_with_vectors(call, held))


def _with_vectors(call: Call, value: Labelled) -> Maps:
    """Combines vectors with axis 1 of a value."""
    after = len(value.shape) - 2
    operands: list[tuple[Maps, tuple[int, ...]]] = [(value.maps, value.shape)]
    for name in _PER_CHANNEL:
        vector = call[name]
        if vector is not None:
            maps = tuple(AxisMap(one.ids.reshape(-1, *[1] * after)) for one in vector.maps)
            operands.append((maps, (*vector.shape, *[1] * after)))
    return call.combine(operands, value.shape)


def over_last_axes(call: Call) -> list[Any]:
    """Layer norm and RMS norm: removing a coordinate would change all others."""
    value = call["input"]
    dims = len(value.shape)
    maps = call.held(value, range(dims - len(call["normalized_shape"]), dims), "it is normalized over this axis")
    for name in ("weight", "bias"):
        call.freeze(call[name], "it scales or shifts a normalized axis")
    return call.alike(maps)


def by_groups(call: Call) -> list[Any]:
    """Group norm: a group is normalized over its channels, so it goes as a whole."""
    value = call["input"]
    groups = int(call["num_groups"] if "num_groups" in call.arguments else call["group"])
    line = call.line(value, 1, "it is normalized in groups")
    if line is not None:
        reason = call.cause("the channels of a normalized group can only go together")
        call.channels.unite_along(line.reshape(groups, -1), 1, reason)
        if groups == 1:
            call.channels.freeze(line, call.cause("it is normalized over all channels"))
    return call.alike(_with_vectors(call, value))


def weight_norm(call: Call) -> list[Any]:
    """A weight is divided by its norms, one along `dim` (one at all for -1), and multiplied by lengths."""
    weight, lengths = call["v"], call["g"]
    axis = int(call["dim"])
    others = [other for other in range(len(weight.shape)) if other != axis]
    reason = "the weight is normalized over it; remove the weight normalization before exporting"
    operands = [(call.held(weight, others, reason), weight.shape), (lengths.maps, lengths.shape)]
    return call.alike(call.combine(operands, weight.shape))


RULES: Mapping[str, Rule] = {
    **named(
        "batch_norm instance_norm native_batch_norm _native_batch_norm_legit_no_training _batch_norm_impl_index",
        per_channel,
    ),
    **named("layer_norm rms_norm native_layer_norm", over_last_axes),
    **named("group_norm native_group_norm", by_groups),
    **named("_weight_norm _weight_norm_interface", weight_norm),
}
