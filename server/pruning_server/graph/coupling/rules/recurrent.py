"""Recurrent layers and cells: a hidden unit goes with all its gates, in every layer and direction of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pruning_server.graph.channels import Ids, unlabelled
from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, Maps, single, tensors_in

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_STATES = "the initial states of all layers and directions have the same hidden units"
_SUMMED = "a gate sums over it"
_ORDERED = "a recurrent layer goes over this axis"


@dataclass(frozen=True)
class _Weights:
    """One layer in one direction: gate rows of G * hidden; `projection` is [projected, hidden]."""

    taken: Labelled
    again: Labelled
    biases: tuple[Labelled, ...]
    projection: Labelled | None = None


def recur(call: Call) -> list[Any]:
    """`lstm`, `gru`, `rnn_tanh`, `rnn_relu`: [.., .., features] or packed [rows, features] in, states [layers, N, units].

    The states of all layers and directions are one tensor, so that all of them keep the same units.
    """
    value = call.first()
    states = list(call["hx"]) if isinstance(call["hx"], list | tuple) else [call["hx"]]
    directions = 2 if call["bidirectional"] else 1
    layers = _layers(call)
    if not all(one.stored for one in call["params"]):
        return _frozen(call, "its weights are computed from the input")
    _hold_all_but_last(call, value, states)
    hidden, shown = _units(call, states)
    features = _line(call, value, len(value.shape) - 1, _SUMMED)
    both = np.tile(shown, directions)
    for number, layer in enumerate(layers):
        _couple(call, layer, features if number < directions else both, hidden, shown)
    return _labelled(call, both, [shown, hidden])


def step(call: Call) -> list[Any]:
    """`lstm_cell` and its kin: [N, features] in, states [N, units]."""
    value = call["input"]
    states = list(call["hx"]) if isinstance(call["hx"], list | tuple) else [call["hx"]]
    weights = _Weights(call["w_ih"], call["w_hh"], tuple(call[name] for name in ("b_ih", "b_hh") if call[name]))
    if not all(one.stored for one in (weights.taken, weights.again, *weights.biases)):
        return _frozen(call, "its weights are computed from the input")
    _hold_all_but_last(call, value, states)
    hidden, shown = _units(call, states)
    _couple(call, weights, _line(call, value, len(value.shape) - 1, _SUMMED), hidden, shown)
    return _labelled(call, shown, [hidden])


def pack(call: Call) -> list[Any]:
    """`_pack_padded_sequence`: the first two axes become one."""
    value = call["input"]
    call.freeze(call["lengths"], "it says how long sequences are")
    maps = call.held(value, [0, 1], "sequences of several lengths are packed along it")
    return [call.result(tuple(AxisMap(one.ids[0]) for one in maps)), call.result((), 1)]


def unpack(call: Call) -> list[Any]:
    """`_pad_packed_sequence`: the first axis becomes two."""
    value = call["data"]
    call.freeze(call["batch_sizes"], "it says how long sequences are")
    maps = call.held(value, [0], "sequences of several lengths are packed along it")
    return [call.result(tuple(AxisMap(one.ids[None]) for one in maps)), call.result((), 1)]


def _layers(call: Call) -> list[_Weights]:
    """The flat list of weights, by layer and, inside it, by direction."""
    params, directions = list(call["params"]), 2 if call["bidirectional"] else 1
    width = len(params) // (int(call["num_layers"]) * directions)
    biases = 2 if call["has_biases"] else 0
    found = []
    for start in range(0, len(params), width):
        taken, again, *rest = params[start : start + width]
        found.append(_Weights(taken, again, tuple(rest[:biases]), rest[biases] if len(rest) > biases else None))
    return found


def _couple(call: Call, weights: _Weights, given: Ids, hidden: Ids, shown: Ids) -> None:
    """One layer in one direction: `given` feeds it, `hidden` are its units, `shown` what it gives on and takes again."""
    gates = _GATES[call.op.removeprefix("aten::").removesuffix("_cell")]
    for rows in (weights.taken, weights.again, *weights.biases):
        _unite(call, _line(call, rows, 0, "it holds the gates").reshape(gates, -1), hidden)
    for columns, partner in ((weights.taken, given), (weights.again, shown)):
        _consume(call, columns, partner)
    if weights.projection is not None:
        _unite(call, _line(call, weights.projection, 0, "it is the output of a projection"), shown)
        _consume(call, weights.projection, hidden)


def _consume(call: Call, weight: Labelled, given: Ids) -> None:
    columns = _line(call, weight, 1, _SUMMED)
    call.channels.mark_consumer(columns)
    call.channels.unite(columns, given, call.cause("it is summed with an axis that always stays"))


def _unite(call: Call, ids: Ids, units: Ids) -> None:
    call.channels.unite(ids, units, call.cause(_STATES))


def _units(call: Call, states: Sequence[Labelled]) -> tuple[Ids, Ids]:
    """Hidden units, and what is given on of them: the same but where an LSTM projects them."""
    lines = [_line(call, state, len(state.shape) - 1, "it is the state of a recurrent layer") for state in states]
    if len(lines[0]) == len(lines[-1]):
        call.channels.unite(lines[0], lines[-1], call.cause(_STATES))
    return lines[-1], lines[0]


def _hold_all_but_last(call: Call, value: Labelled, states: Sequence[Labelled]) -> None:
    for one in (value, *states):
        call.held(one, range(len(one.shape) - 1), _ORDERED)


def _line(call: Call, value: Labelled, axis: int, reason: str) -> Ids:
    line = call.line(value, axis, reason)
    return unlabelled([value.shape[axis]]) if line is None else line


def _labelled(call: Call, given: Ids, states: Sequence[Ids]) -> list[Any]:
    """The first result's last axis is what is given on, that of the others their states."""
    lines = [given, *states]
    return [call.result(_last(lines[index], result), index) for index, result in enumerate(call.results)]


def _last(line: Ids, result: torch.Tensor) -> Maps:
    return single(line, result.dim() - 1, result.dim()) if (line >= 0).any() else ()


def _frozen(call: Call, reason: str) -> list[Any]:
    call.freeze(list(tensors_in(list(call.arguments.values()))), reason)
    return [call.result((), index) for index in range(len(call.results))]


RULES: Mapping[str, Rule] = {
    **named("lstm gru rnn_tanh rnn_relu", recur),
    **named("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", step),
    **named("_pack_padded_sequence", pack),
    **named("_pad_packed_sequence", unpack),
}
