"""Channels whose kernels are all zero: what is left of them is a constant, which the next layer's bias can take over.

Exact only where nothing but the constant reaches the consumer: no other value is mixed in on the way, the samples show the
same number at every position, and no zeros are padded around it (or the constant is 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch

from pruning_server.graph.coupling.leaves import Leaf
from pruning_server.graph.coupling.tracer import Tracer
from pruning_server.graph.domain import Domain
from pruning_server.graph.execution import Executor
from pruning_server.graph.program import Method, Step
from pruning_server.graph.state import StateGuard
from pruning_server.graph.surgery.consumers import Consumer, Stored, find_consumers


@dataclass(frozen=True, eq=False)
class Fold:
    """What is added to a stored bias [out] for the constants that its op no longer sees."""

    bias: str
    addend: torch.Tensor


@dataclass(frozen=True)
class Dead:
    """Classes that can go without a change of the outputs, and what the biases take over."""

    classes: frozenset[int]
    folds: tuple[Fold, ...]


def find_dead(
    module: torch.jit.ScriptModule,
    tracer: Tracer,
    methods: Mapping[str, Method],
    runs: Sequence[Sequence[object]],
) -> Dead:
    """Looks for channels that are constants; `tracer` is finished, and `runs` are inputs of `forward`."""
    leaves = list(tracer.leaves)
    consumers = find_consumers(tracer.visits, Stored(leaves), tracer.channels)
    candidates = _candidates(tracer, leaves, consumers)
    if not candidates or not runs:
        return Dead(frozenset(), ())
    recorder = _Recorder(consumers)
    executor = Executor(module, recorder)
    with torch.no_grad(), StateGuard(module):
        for inputs in runs:
            executor.run(methods["forward"], "forward", list(inputs))
    counted = tracer.channels.counted_classes()
    dead = frozenset(
        root
        for root in candidates
        if all(_is_constant(recorder, one, root, zero=root in counted) for one in consumers if root in one.classes)
    )
    dead -= _last_of_axes(leaves, tracer, dead)
    folds = [_fold(recorder, one, dead) for one in consumers if one.bias is not None]
    return Dead(dead, tuple(fold for fold in folds if bool((fold.addend != 0).any())))


def _candidates(tracer: Tracer, leaves: Sequence[Leaf], consumers: Sequence[Consumer]) -> set[int]:
    """Free classes whose kernels are zero, and that only listed consumers use."""
    channels = tracer.channels
    summed = {(id(one.kernel.leaf), one.kernel.axis) for one in consumers}
    zero: set[int] = set()
    alive = set(channels.mixed_classes() | channels.switch_off_at_producers())
    for leaf in leaves:
        for axis, line in enumerate(leaf.lines):
            if line is None:
                continue
            empty = _empty_slices(leaf.tensor, axis) if leaf.tensor.dim() > 1 else None
            for coordinate, (element, root) in enumerate(
                zip(line.tolist(), channels.roots(line).tolist(), strict=True)
            ):
                if channels.is_frozen(root):
                    continue
                if channels.is_consumer(element):
                    alive |= set() if (id(leaf), axis) in summed else {root}
                elif empty is not None:
                    (zero if empty[coordinate] else alive).add(root)
    return zero - alive


def _empty_slices(tensor: torch.Tensor, axis: int) -> list[bool]:
    rows = tensor.detach().movedim(axis, 0).reshape(tensor.shape[axis], -1)
    return [not one for one in rows.ne(0).any(dim=1).tolist()]


class _Recorder(Domain):
    """Keeps the smallest and largest value of each coordinate that a consumer sees."""

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self._consumers = {id(one.node): one for one in consumers}
        self.ranges: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def apply(self, step: Step, inputs: Sequence[Any]) -> Sequence[Any]:
        """Looks at the activation before the op runs."""
        consumer = self._consumers.get(id(step.node))
        if consumer is not None:
            rows = inputs[0].detach().movedim(consumer.axis, 0).flatten(1)
            low, high = rows.amin(dim=1), rows.amax(dim=1)
            known = self.ranges.get(id(step.node))
            if known is not None:
                low, high = torch.minimum(low, known[0]), torch.maximum(high, known[1])
            self.ranges[id(step.node)] = (low, high)
        return super().apply(step, inputs)


def _is_constant(recorder: _Recorder, consumer: Consumer, root: int, *, zero: bool) -> bool:
    seen = recorder.ranges.get(id(consumer.node))
    if seen is None:
        return False
    places = [number for number, other in enumerate(consumer.classes) if other == root]
    low, high = seen[0][places], seen[1][places]
    if not bool((low == high).all()):
        return False
    if bool((low == 0).all()):
        return True
    if zero:
        return False
    # Half precision would round the sum.
    exact = consumer.bias is not None and consumer.bias.leaf.tensor.dtype in {torch.float32, torch.float64}
    return consumer.folds and exact


def _last_of_axes(leaves: Sequence[Leaf], tracer: Tracer, dead: frozenset[int]) -> frozenset[int]:
    """One class of every axis that would otherwise lose all."""
    kept: set[int] = set()
    for leaf in leaves:
        for line in leaf.lines:
            roots = tracer.channels.roots(line).tolist() if line is not None else []
            if roots and dead.issuperset(roots) and kept.isdisjoint(roots):
                kept.add(roots[0])
    return frozenset(kept)


def _fold(recorder: _Recorder, consumer: Consumer, dead: AbstractSet[int]) -> Fold:
    kernel = consumer.kernel.leaf.tensor.detach().double()
    bias = "" if consumer.bias is None else consumer.bias.leaf.name
    places = [number for number, root in enumerate(consumer.classes) if root in dead]
    if not places:
        return Fold(bias, torch.zeros(1, dtype=torch.float64))
    values = recorder.ranges[id(consumer.node)][0][places].double()
    taps = kernel[:, places].flatten(2).sum(dim=2) if kernel.dim() > 2 else kernel[:, places]
    return Fold(bias, taps @ values)
