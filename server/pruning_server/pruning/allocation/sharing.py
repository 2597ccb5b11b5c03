"""From scores to the channels that go: in which order, and how many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.allocation.latency import reach_latency
from pruning_server.pruning.allocation.orders import Step, order_globally, order_per_layer
from pruning_server.pruning.allocation.refitting import Refits
from pruning_server.pruning.allocation.sensitivity import (
    Probes,
    Suffering,
    count_samples,
    measure_sensitivity,
    order_by_harm,
    tell,
)
from pruning_server.pruning.allocation.targets import Chosen, CostShare, reach_ratio, reach_sparsity
from pruning_server.pruning.candidates import lengths_of
from pruning_server.pruning.criteria.base import Basis
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.ladder import SOFT_FLOOR, Ladder, build_ladder
from pruning_server.pruning.values import StructuralInput
from pruning_server.spec.request import Scope, StaticStrategy, Target, TargetKind

RELUCTANCES = (1e6, 4.0, 1.0)
"""By how much channels that several layers take in weigh more than they do alone: their harm adds up with every other's."""

MARGIN = 1.5
"""The most reluctant way is taken whose channels together do at most this times the least harm of all ways.

Reconstruction makes up for channels inside a block, and hardly for those of a residual stream: a CIFAR ResNet-20 at half
of its MACs gets 81.6 % without any gradient step where the stream stays, 80.5 % where the least harm decides."""


@dataclass(frozen=True)
class Allocation:
    """What is to be shared out.

    Attributes:
        groups: those that may lose channels, by number.
        scores: per channel of each; the lowest go first.
        ladder: an order of removals to keep to; None: one is found.
    """

    structure: StructuralInput
    config: StaticStrategy
    target: Target
    groups: Mapping[int, ChannelGroup]
    scores: Mapping[int, torch.Tensor]
    seed: int
    evidence: Evidence | None
    ladder: Ladder | None = None

    def share_out(self) -> tuple[Ladder, Chosen, tuple[str, ...]]:
        """The order of removals, how far the target goes, and what to say of it."""
        notes: tuple[str, ...] = ()
        if self.ladder is not None:
            ladder = self.ladder
        elif self.config.scope is Scope.LAYER:
            ladder = self._ladder(order_per_layer(self.scores), 0.0)
        elif self.config.scope is Scope.GLOBAL:
            ladder = self._ladder(order_globally(self.scores), SOFT_FLOOR)
        else:
            ladder, notes = self.by_sensitivity()
        return ladder, self._choose(ladder, self.target), notes

    @property
    def data(self) -> Evidence:
        """The evidence, which some ways need."""
        if self.evidence is None:
            text = "A plan that needs data was asked for without any; please report this."
            raise JobFailureError(Reason.INTERNAL, text)
        return self.evidence

    def _ladder(self, order: Sequence[Step], soft_floor: float) -> Ladder:
        lengths = lengths_of(self.structure)
        return build_ladder(self.groups, order, lengths, self.config.channels, soft_floor=soft_floor)

    def _choose(self, ladder: Ladder, target: Target) -> Chosen:
        cost = self.structure.cost
        if target.kind is TargetKind.SPARSITY:
            return reach_sparsity(ladder, target.value)
        if target.kind is not TargetKind.LATENCY_RATIO:
            return reach_ratio(ladder, cost, target)
        return reach_latency(
            ladder,
            CostShare(ladder, cost, self._computed).of_steps,
            self.data.latency_ratio,
            target.value,
            widths_are_free=self.config.channels.multiple is None,
        )

    @property
    def _computed(self) -> TargetKind:
        """The target, or what stands in for it where it has to be measured."""
        if self.target.kind is not TargetKind.LATENCY_RATIO:
            return self.target.kind
        return TargetKind.PARAMETER_RATIO if self.structure.cost({}).macs is None else TargetKind.MACS_RATIO

    # --- Sensitivity --------------------------------------------------------------------------------------------------

    def by_sensitivity(self, off: Removal | None = None) -> tuple[Ladder, tuple[str, ...]]:
        """The order in which channels do least harm to the model as it is; `off` has gone before, and stays first."""
        off = off or {}
        refits = Refits(self.groups, Basis(self.structure.tensors, self.seed, self.data))
        samples = count_samples(self.groups, self.structure.cost({}).macs, len(self.data.original("select")))

        def divergence(removal: Removal) -> float:
            updates = refits.without(removal, off)
            return self.data.divergence(_together(off, removal), updates=updates, samples=samples)

        before = divergence({}) if off else 0.0

        def harm(removal: Removal) -> float:
            return divergence(removal) - before

        probes = Probes(harm, lambda removal: self._cost(_together(off, removal)))
        layers = measure_sensitivity(self.groups, self.scores, probes, off)
        ladder = self._best_together(layers, divergence, off)
        return ladder, (tell(layers, self.groups, samples),) if layers else ()

    def _best_together(self, layers: Sequence[Suffering], harm: Callable[[Removal], float], off: Removal) -> Ladder:
        """The ladder whose channels, those that it takes to the target, do least harm together."""
        shared = {number for number, group in self.groups.items() if _is_shared(group)}
        several = 0 < len(shared) < len(self.groups)
        first = [(number, channel) for number, channels in sorted(off.items()) for channel in channels]
        ladders = [
            self._ladder([*first, *order_by_harm(layers, dict.fromkeys(shared, reluctance))], SOFT_FLOOR)
            for reluctance in (RELUCTANCES if several else RELUCTANCES[-1:])
        ]
        goal = Target(kind=self._computed, value=self.target.value)
        tried: list[tuple[float, Ladder]] = []
        for ladder in ladders if several else ():
            chosen = self._choose(ladder, goal)
            if chosen.is_reached:
                found = harm(ladder.removal(chosen.counts))
                tried.append((math.inf if math.isnan(found) else found, ladder))
        least = min((found for found, _ in tried), default=math.inf)
        return next((ladder for found, ladder in tried if found <= MARGIN * least), ladders[-1])

    def _cost(self, removal: Removal) -> float:
        if self._computed is TargetKind.SPARSITY:
            whole = sum(group.size for group in self.groups.values())
            return float(whole - sum(len(gone) for gone in removal.values()))
        cost = self.structure.cost(removal)
        # Unknown MACs are refused when the target is looked at.
        return float(cost.parameters if self._computed is TargetKind.PARAMETER_RATIO else cost.macs or cost.parameters)


def _together(off: Removal, removal: Removal) -> Removal:
    if not off:
        return removal
    numbers = sorted({*off, *removal})
    return {number: tuple(sorted({*off.get(number, ()), *removal.get(number, ())})) for number in numbers}


def _is_shared(group: ChannelGroup) -> bool:
    """Whether several layers take the channels in, as a residual stream's."""
    return len({member.tensor for member in group.members if member.consumer}) > 1
