"""Sums, means, extrema and everything else that goes over an axis: the axis stays, the others keep their labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule, axis_list
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.rules.elementwise import several
from pruning_server.graph.coupling.values import Labelled, squeezed

_REASON = "{op} goes over this axis"


def reduce(call: Call) -> list[Any]:
    """The named axes, or all, vanish or keep length 1."""
    if isinstance(call["other"], Labelled):  # the maximum of two tensors
        return several(call)
    value = call.first()
    dims = len(value.shape)
    axes = axis_list(call["dim"], dims)
    if 0 in call.unused and len(call.results) == 1:  # any number will do
        maps = tuple(one for one in value.maps if not set(one.axes) & set(axes))
        return call.alike(squeezed(maps, axes) if dims and call.results[0].dim() < dims else maps)
    maps = call.held(value, axes, _REASON.format(op=call.op))
    if dims and call.results[0].dim() < dims:
        maps = squeezed(maps, axes)
    return call.alike(maps)


def along(call: Call) -> list[Any]:
    """The result has the value's shape, and every element depends on all along one axis."""
    value = call.first()
    return call.alike(call.held(value, axis_list(call["dim"], len(value.shape)), _REASON.format(op=call.op)))


def triangle(call: Call) -> list[Any]:
    """`tril`, `triu`: which elements stay depends on their number on the last two axes."""
    value = call["self"]
    return [call.result(call.held(value, [-2, -1], _REASON.format(op=call.op)))]


def over_others(call: Call) -> list[Any]:
    """`renorm`: every slice along one axis is scaled by a norm over all others."""
    value = call["self"]
    others = set(range(len(value.shape))) - {int(call["dim"]) % len(value.shape)}
    return [call.result(call.held(value, others, _REASON.format(op=call.op)))]


RULES: Mapping[str, Rule] = {
    **named(
        """
        mean sum var std amax amin max min prod norm logsumexp any all argmax argmin nansum nanmean median aminmax
        linalg_vector_norm var_mean std_mean count_nonzero mode kthvalue nanmedian frobenius_norm linalg_norm
        special_logsumexp
        """,
        reduce,
    ),
    **named(
        """
        softmax log_softmax _softmax _log_softmax _safe_softmax special_softmax special_log_softmax
        cumsum cumprod cummax cummin sort argsort topk logcumsumexp msort
        """,
        along,
    ),
    **named("tril triu", triangle),
    **named("renorm", over_others),
}
