"""What a run in evaluation mode changes in a model: its own state, such as hidden states and counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pruning_server.graph import ir
from pruning_server.graph.modules import StateGuard
from pruning_server.graph.slots import dotted, find_places
from pruning_server.worker.feeding import Feed
from pruning_server.worker.running import CallRule


def find_state(module: torch.jit.ScriptModule, feed: Feed, rule: CallRule) -> frozenset[str]:
    """Dotted names of the buffers and attributes that calling the model changes; the model is left as it was."""
    rows = [row % len(feed.samples) for row in range(rule.exact_batch or 1)]
    with StateGuard(module):
        before = _attributes(module)
        with torch.no_grad():
            module(*feed.inputs(rows))
        after = _attributes(module)
    return frozenset(name for name, value in before.items() if not _equal(value, after.get(name)))


def _attributes(module: torch.jit.ScriptModule) -> dict[str, object]:
    return {
        dotted((*path, name)): _copied(value)
        for path, owner in find_places(module).modules.items()
        for name, value, is_parameter in ir.attributes(owner)
        if not is_parameter
    }


def _copied(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)
