"""Recurrent ops: not followed yet, everything that they touch stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named


def recur(call: Call) -> list[Any]:
    """Freezes inputs, states and weights."""
    call.freeze(list(call.arguments.values()), "channels are not followed through recurrent layers")
    return [
        call.result((), index) if isinstance(result, torch.Tensor) else result
        for index, result in enumerate(call.results)
    ]


RULES: Mapping[str, Rule] = named(
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _thnn_fused_lstm_cell", recur
)
