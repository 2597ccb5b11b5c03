"""What a run in evaluation mode changes in a model: its own state, such as hidden states and counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch

from pruning_server.graph import ir
from pruning_server.graph.modules import StateGuard, writes_state
from pruning_server.graph.slots import dotted, find_places
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.worker.feeding import Feed
from pruning_server.worker.running import CallRule

# A state may change only with certain samples, such as one after an alarm.
SEARCHED_ROWS = 512
SEARCH_BATCH = 16


def find_state(module: torch.jit.ScriptModule, feed: Feed, rule: CallRule) -> frozenset[str]:
    """Dotted names of the buffers and attributes that calling the model changes; the model is left as it was."""
    size = rule.exact_batch or 1
    changed = _changed(module, feed, [range(size)])
    if changed or not writes_state(module):
        return changed
    size = rule.exact_batch or SEARCH_BATCH
    last = min(SEARCHED_ROWS, len(feed.samples))
    return _changed(module, feed, [range(start, start + size) for start in range(0, last, size)])


def _changed(module: torch.jit.ScriptModule, feed: Feed, batches: Sequence[range]) -> frozenset[str]:
    """What calls with these samples change; those after one that raised are left out, as judging meets it again."""
    with StateGuard(module):
        before = _attributes(module)
        with torch.no_grad(), suppress(*MODEL_ERRORS):
            for rows in batches:
                module(*feed.inputs([row % len(feed.samples) for row in rows]))
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
