"""Sensitivity: each layer is pruned alone at a few fractions, and channels go where the measured harm per cost is least.

Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv:1608.08710 (layers pruned one by one, those that suffer spared). What a trial
measures is how far the outputs move, with the layers that take the channels in refitted to those that are left: after
pruning every job with recovery has that. Small harms add up; the order is greedy, by harm per saved cost.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.allocation.orders import Step
from pruning_server.pruning.ranking import ascending

FRACTIONS = (0.25, 0.5, 0.75)
"""Of a layer's channels, those with the lowest scores go in each trial."""

MIN_SAMPLES, MAX_SAMPLES = 32, 512
"""Of the select split, in each trial."""

MAX_MACS = 6e12
"""Of all trials together, about a minute on two cores; a larger model is tried on fewer samples."""

EXPLODED = 30.0
"""A layer that suffers this many times as much as the median layer at the first fraction is not tried any further."""

STEEPER = 3.0
"""How much harm grows from one fraction to the next where it is not measured, as without the last channel."""

SMALLEST = 1e-2
"""Harms below this share of the median layer's at the first fraction are noise; harm grows exponentially above it."""


@dataclass(frozen=True)
class Probes:
    """What trials are made of.

    Attributes:
        harm: how far the outputs are from the original's without some channels; NaN where they are no numbers.
        cost: what the target counts of the model without some channels.
    """

    harm: Callable[[Removal], float]
    cost: Callable[[Removal], float]


@dataclass(frozen=True)
class Suffering:
    """One layer's trials.

    Attributes:
        steps: its channels, the lowest score first.
        counts: how many of them were gone in each trial, ascending; the last is all of them, which is never tried.
        harms: what that does, finite, never below 0 nor below that of fewer channels.
        saved: the cost that they save, above 0, ascending.
        trials: number of trials that were really run.
    """

    steps: tuple[Step, ...]
    counts: tuple[int, ...]
    harms: tuple[float, ...]
    saved: tuple[float, ...]
    trials: int

    def slopes(self, smallest: float) -> list[float]:
        """Harm per cost of each channel in turn, never less than that of the one before.

        Between trials the logarithm of harm is linear, as of something that grows faster the more is gone.
        """
        points = [(0, 0.0, 0.0), *zip(self.counts, self.saved, self.harms, strict=True)]
        slopes: list[float] = []
        for (start, before, low), (end, after, high) in itertools.pairwise(points):
            growth = math.log((high + smallest) / (low + smallest)) / (end - start)
            saving = (after - before) / (end - start)
            for place in range(end - start):
                harm = (low + smallest) * (math.exp(growth * (place + 1)) - math.exp(growth * place))
                slopes.append(max(harm / saving, slopes[-1] if slopes else 0.0))
        return slopes


def measure_sensitivity(
    groups: Mapping[int, ChannelGroup],
    scores: Mapping[int, torch.Tensor],
    probes: Probes,
    off: Removal | None = None,
) -> tuple[Suffering, ...]:
    """Tries every layer: groups that share all their axes are one.

    Args:
        groups: those that may lose channels, by number.
        scores: per channel of each; the lowest go first.
        probes: runs the trials: `len(FRACTIONS)` per layer, or fewer where it suffers beyond `EXPLODED`.
        off: what has gone before, and is no part of any trial.
    """
    left = [_without(steps, off or {}) for steps in find_layers(groups, scores)]
    layers = [steps for steps in left if steps]
    tried = [_counts(len(steps)) for steps in layers]
    first = [_clean(probes.harm(_removal(steps[: counts[0]]))) for steps, counts in zip(layers, tried, strict=True)]
    limit = EXPLODED * _usual(first)
    found: list[list[float]] = []
    for steps, counts, harm in zip(layers, tried, first, strict=True):
        harms = [harm]
        for count in counts[1:]:
            if harms[-1] > limit:
                break
            harms.append(max(harms[-1], _clean(probes.harm(_removal(steps[:count])))))
        found.append(harms)
    worst = max((harm for harms in found for harm in harms if harm < math.inf), default=0.0) or 1.0
    whole = probes.cost({})
    result = []
    for steps, counts, harms in zip(layers, tried, found, strict=True):
        everything = tuple(dict.fromkeys((*counts, len(steps))))
        continued = _continued(harms, len(everything), worst)
        saved = _saved(steps, everything, probes.cost, whole)
        result.append(Suffering(steps, everything, continued, saved, len(harms)))
    return tuple(result)


def count_samples(groups: Mapping[int, ChannelGroup], macs: int | None, available: int) -> int:
    """Samples of each trial.

    Args:
        groups: those that may lose channels.
        macs: of one sample; None where they are not known.
        available: in the select split.
    """
    layers = len({frozenset((one.tensor, one.axis) for one in group.members) for group in groups.values()})
    affordable = MAX_SAMPLES if not macs else int(MAX_MACS / (macs * layers * len(FRACTIONS)))
    return min(available, max(MIN_SAMPLES, min(MAX_SAMPLES, affordable)))


def order_by_harm(layers: Sequence[Suffering], reluctance: Mapping[int, float] | None = None) -> list[Step]:
    """The channel that harms least per cost first; of equal ones that whose layer has lost the smaller fraction.

    `reluctance`: by group number, what its harm is multiplied by; 1 where nothing is said.
    """
    weights = reluctance or {}
    smallest = SMALLEST * _usual([layer.harms[0] for layer in layers]) or 1e-9
    steps = [step for layer in layers for step in layer.steps]
    turns = [(place + 0.5) / len(layer.steps) for layer in layers for place in range(len(layer.steps))]
    slopes = [slope * weights.get(layer.steps[0][0], 1.0) for layer in layers for slope in layer.slopes(smallest)]
    even = ascending(torch.tensor(turns, dtype=torch.float64))
    best = even[ascending(torch.tensor(slopes, dtype=torch.float64)[even])]
    return [steps[position] for position in best.tolist()]


def tell(layers: Sequence[Suffering], groups: Mapping[int, ChannelGroup], samples: int) -> str:
    """What was found, for the report."""
    ranked = sorted(layers, key=lambda layer: layer.harms[0])
    names = [groups[layer.steps[0][0]].members[0].tensor for layer in (ranked[0], ranked[-1])]
    return (
        f"sensitivity was measured in {sum(layer.trials for layer in layers)} trials on {samples} samples: without"
        f" {FRACTIONS[0]:.0%} of the channels of {names[0]} the outputs move the least ({ranked[0].harms[0]:.3g}), of"
        f" {names[1]} the most ({ranked[-1].harms[0]:.3g})"
    )


def find_layers(groups: Mapping[int, ChannelGroup], scores: Mapping[int, torch.Tensor]) -> list[tuple[Step, ...]]:
    """Channels by layer, the lowest score first: groups that share all their axes are one layer."""
    sharing: dict[frozenset[tuple[str, int]], list[int]] = {}
    for number, group in groups.items():
        sharing.setdefault(frozenset((one.tensor, one.axis) for one in group.members), []).append(number)
    layers = []
    for numbers in sharing.values():
        steps = [(number, channel) for number in numbers for channel in range(groups[number].size)]
        order = ascending(torch.cat([scores[number].double() for number in numbers]))
        layers.append(tuple(steps[position] for position in order.tolist()))
    return layers


def _without(steps: Sequence[Step], off: Removal) -> tuple[Step, ...]:
    return tuple((number, channel) for number, channel in steps if channel not in off.get(number, ()))


def _counts(size: int) -> tuple[int, ...]:
    """How many channels go in each trial: never all, but of one."""
    most = max(1, size - 1)
    return tuple(dict.fromkeys(min(most, max(1, round(fraction * size))) for fraction in FRACTIONS))


def _usual(harms: Sequence[float]) -> float:
    """The median of what harms at all."""
    suffering = [harm for harm in harms if 0 < harm < math.inf]
    return statistics.median(suffering) if suffering else 0.0


def _removal(steps: Sequence[Step]) -> Removal:
    removal: dict[int, list[int]] = {}
    for number, channel in steps:
        removal.setdefault(number, []).append(channel)
    return {number: tuple(sorted(channels)) for number, channels in sorted(removal.items())}


def _clean(harm: float) -> float:
    return math.inf if math.isnan(harm) else max(0.0, harm)


def _continued(harms: Sequence[float], count: int, worst: float) -> tuple[float, ...]:
    """Finite, and steeper where nothing was measured."""
    known = [harm if harm < math.inf else STEEPER * worst for harm in harms]
    while len(known) < count:
        known.append(STEEPER * known[-1])
    return tuple(known)


def _saved(
    steps: Sequence[Step], counts: Sequence[int], cost: Callable[[Removal], float], whole: float
) -> tuple[float, ...]:
    # What saves nothing is last in line, without dividing by 0.
    least = whole * 1e-9 or 1e-9
    saved: list[float] = []
    for count in counts:
        saved.append(max(whole - cost(_removal(steps[:count])), (saved[-1] if saved else 0.0) + least))
    return tuple(saved)
