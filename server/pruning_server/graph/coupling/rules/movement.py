"""Ops that only move elements: run on labels, they show where each channel goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pruning_server.graph.channels import Ids
from pruning_server.graph.coupling.calls import Call, Rule, axis_list
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.rules.indexing import freeze_all, indexed_axes
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps, as_tensor, from_tensor, single, tensors_in

_MOVES = """
    view _unsafe_view reshape view_as reshape_as permute transpose t numpy_T adjoint mT matrix_H mH movedim moveaxis
    swapaxes swapdims flatten unflatten ravel unsqueeze slice narrow
    chunk unsafe_chunk split unsafe_split split_with_sizes unsafe_split_with_sizes tensor_split hsplit vsplit dsplit
    flip fliplr flipud repeat tile pixel_shuffle pixel_unshuffle
    atleast_1d atleast_2d atleast_3d
"""

# Views of a repeated label would need memory of its own.
_NEEDS_LAYOUT = frozenset({"aten::view", "aten::view_as", "aten::_unsafe_view"})


def move(call: Call) -> list[Any]:
    """Labels go where the elements go; a channel's index that comes to lie on several axes must stay a box."""
    source = call.first()
    if not isinstance(source, Labelled):
        return list(call.results)
    for other in list(tensors_in(list(call.arguments.values())))[1:]:
        if call.op not in {"aten::view_as", "aten::reshape_as"}:
            call.freeze(other, "it says which elements are taken")
    return _moved(call, source, source.maps)


def repeat_each(call: Call) -> list[Any]:
    """`repeat_interleave`; one overload has no value, only numbers of repetitions."""
    source, times, axis = call["self"], call["repeats"], call["dim"]
    if source is None:
        return freeze_all(call)
    if not isinstance(times, Labelled):
        return move(call)
    call.freeze(times, "it says which elements are taken")
    return _moved(
        call, source, call.held(source, axis_list(axis, len(source.shape)), "its elements are repeated by a list")
    )


def _moved(call: Call, source: Labelled, maps: Maps) -> list[Any]:
    found: list[list[list[Ids]]] = []
    for one in maps:
        labels = as_tensor(one, source.shape)
        results = call.rerun(labels.contiguous() if call.op in _NEEDS_LAYOUT else labels)
        found.append([[from_tensor(part) for part in _parts(result)] for result in results])
    outputs: list[Any] = []
    for index, result in enumerate(call.results):
        labelled = [
            Labelled(part, _place(call, [moved[index][number] for moved in found]), source.stored)
            for number, part in enumerate(_parts(result))
        ]
        outputs.append(labelled if isinstance(result, list | tuple) else labelled[0])
    return outputs


def _parts(result: Any) -> Sequence[torch.Tensor]:
    return list(result) if isinstance(result, list | tuple) else [result]


def _place(call: Call, moved: Sequence[Ids]) -> Maps:
    placed: list[AxisMap] = []
    # Where two maps come to lie on one axis, the one with more channels goes on.
    for ids in sorted(moved, key=lambda ids: -ids.size):
        new = AxisMap(ids)
        if not new.axes:
            call.channels.freeze(ids, call.cause("a single channel is picked"))
        elif any(set(new.axes) & set(known.axes) for known in placed):
            call.channels.freeze(ids, call.cause("two labelled axes are merged into one"))
        else:
            if len(new.axes) > 1:
                call.channels.require_box(ids)
            placed.append(new)
    return tuple(placed)


def squeeze(call: Call) -> list[Any]:
    """An axis of more than one channel stays in place; it would go if only one were left."""
    source = call["self"]
    for axis in axis_list(call["dim"], len(source.shape)):
        found = source.map_at(axis)
        if found is not None:
            two = np.take(found.ids, [0, 1], axis)
            call.channels.freeze(two, call.cause("an axis of one channel would be squeezed, so that two must stay"))
    return move(call)


def shuffle(call: Call) -> list[Any]:
    """`channel_shuffle`: the groups stay equally wide, so that the same channels of every group go together."""
    source = call.first()
    line = call.line(source, 1, "groups of channels are shuffled")
    if line is None:
        return _moved(call, source, call.held(source, [1], "groups of channels are shuffled"))
    call.channels.unite_along(
        line.reshape(int(call["groups"]), -1), 0, call.cause("the groups of a channel shuffle must stay equally wide")
    )
    return move(call)


def pick(call: Call) -> list[Any]:
    """`select` and `unbind`: nothing may be removed along the axis that is counted."""
    source = call["self"]
    axis = int(call["dim"]) % len(source.shape)
    maps = call.held(source, [axis], "single channels are picked by number")
    return _moved(call, source, maps)


def hold_named_axes(call: Call) -> list[Any]:
    """The order or number along the named axes matters, so that nothing may be removed there."""
    source = call["self"]
    named_axes = call["dims"] if "dims" in call.arguments else call["dim"]
    if "dimension" in call.arguments:
        named_axes = call["dimension"]
    maps = call.held(source, axis_list(named_axes, len(source.shape)), "the order along this axis matters")
    call.freeze(call["index"], "it says which elements are taken")
    return _moved(call, source, maps)


def index(call: Call) -> list[Any]:
    """Indexing by tensors: the indexed axes stay as they are, the others keep their labels."""
    source, indices = call["self"], list(call["indices"])
    call.freeze(indices, "it says which elements are taken")
    return _moved(call, source, call.held(source, indexed_axes(indices), "channels are picked by an index"))


def expand(call: Call) -> list[Any]:
    """An axis that repeats one coordinate is like a constant: its copies may go with what they meet."""
    source = call.first()
    moved = _moved(call, source, source.maps)[0]
    maps, dims = moved.maps, moved.tensor.dim()
    for axis, size in enumerate(moved.shape):
        own = axis - (dims - len(source.shape))
        if size > 1 and (own < 0 or source.shape[own] == 1):
            copies = call.channels.create(size)
            call.channels.mark_shifted(copies)  # nothing stored makes them zero
            if not moved.stored:
                call.channels.mark_mixed(copies)
            maps += single(copies, axis, dims)
    return [Labelled(moved.tensor, maps, moved.stored)]


RULES: Mapping[str, Rule] = {
    **named(_MOVES, move),
    **named("squeeze", squeeze),
    **named("channel_shuffle native_channel_shuffle", shuffle),
    **named("select unbind", pick),
    **named("roll unfold index_select diagonal", hold_named_axes),
    **named("index _unsafe_index", index),
    **named("repeat_interleave", repeat_each),
    **named("expand expand_as broadcast_to", expand),
}
