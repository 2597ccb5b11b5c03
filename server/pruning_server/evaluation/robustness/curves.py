"""Both models along one curve: intervals at every level, and of the difference of the areas under them.

A sample's own area is the mean of its values along the curve, so that the areas of two models are compared in pairs, as
any other number that each sample has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning_server.evaluation.judgement import decide, independent_units
from pruning_server.evaluation.paired import Interval, mean_interval, tango_interval
from pruning_server.spec.report_robustness import CurvePoint
from pruning_server.spec.request import Verdict

# Every curve has several intervals; ends are told to two or three digits.
RESAMPLES = 2_000
# With fewer samples that differ, a bootstrap knows too little of what it has not seen.
FEW_DIFFERENCES = 20
# With fewer yet, they do not even say how large a difference may be.
FEWEST_DIFFERENCES = 5


@dataclass(frozen=True)
class LevelValues:
    """What each of [n] samples says of both models at one level; `identical`: whether every output is the same."""

    level: float
    original: np.ndarray
    pruned: np.ndarray
    identical: bool


@dataclass(frozen=True)
class Rules:
    """How curves are judged.

    Attributes:
        is_binary: whether a sample is right or wrong at one level.
        is_bounded: whether differences lie in [-1, 1].
        units: [n] numbers of the groups that samples belong to.
        margin: the largest acceptable loss.
    """

    is_binary: bool
    is_bounded: bool
    units: np.ndarray | None
    confidence_level: float
    margin: float
    seed: int


@dataclass(frozen=True)
class Area:
    """The areas under both curves, divided by the curve's length: the mean of the metric along it.

    Attributes:
        original: [n] of each sample; `pruned` likewise.
        interval: of the mean difference.
        verdict: of the interval against the margin.
    """

    original: np.ndarray
    pruned: np.ndarray
    interval: Interval
    verdict: Verdict

    @property
    def delta(self) -> float:
        """Mean of pruned - original."""
        return float(self.pruned.mean()) - float(self.original.mean())


def points(values: Sequence[LevelValues], rules: Rules) -> tuple[CurvePoint, ...]:
    """Every level with its paired interval."""
    return tuple(_point(one, rules) for one in values)


def area(values: Sequence[LevelValues], rules: Rules) -> Area:
    """The areas by the trapezoidal rule over the levels; at least two, ascending."""
    weights = trapezoid_weights([one.level for one in values])
    original = np.tensordot(weights, np.stack([one.original for one in values]), axes=1)
    pruned = np.tensordot(weights, np.stack([one.pruned for one in values]), axes=1)
    interval = _interval(original, pruned, rules, is_binary=False)
    identical = all(one.identical for one in values)
    verdict = decide((interval.low, interval.high), rules.margin, identical_outputs=identical)
    return Area(original, pruned, interval, verdict)


def trapezoid_weights(levels: Sequence[float]) -> np.ndarray:
    """[k] weights, adding up to 1, with which values at the levels give the mean along the curve.

    Raises:
        ValueError: there are fewer than two levels, or they do not ascend.
    """
    steps = np.diff(np.asarray(levels, np.float64))
    if not len(steps) or not (steps > 0).all():
        raise ValueError("a curve needs at least two levels, and they must ascend")
    weights = np.zeros(len(levels))
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return np.asarray(weights / steps.sum())


def _point(values: LevelValues, rules: Rules) -> CurvePoint:
    is_binary = rules.is_binary and all(np.isin(one, (0.0, 1.0)).all() for one in (values.original, values.pruned))
    interval = _interval(values.original, values.pruned, rules, is_binary=is_binary)
    original, pruned = float(values.original.mean()), float(values.pruned.mean())
    return CurvePoint(
        level=values.level,
        original=original,
        pruned=pruned,
        delta=pruned - original,
        interval=(interval.low, interval.high),
    )


def _interval(original: np.ndarray, pruned: np.ndarray, rules: Rules, *, is_binary: bool) -> Interval:
    groups = independent_units(rules.units)
    if is_binary and groups is None:
        lost, gained = int((original > pruned).sum()), int((pruned > original).sum())
        return tango_interval(lost, gained, len(original), rules.confidence_level)
    differences = pruned - original
    interval = mean_interval(
        differences,
        confidence_level=rules.confidence_level,
        seed=rules.seed,
        units=groups,
        is_bounded=rules.is_bounded,
        resamples=RESAMPLES,
    )
    is_sparse = 0 < int(np.count_nonzero(differences)) < FEW_DIFFERENCES
    return _widened(interval, differences, rules) if is_sparse and rules.is_bounded and groups is None else interval


def _widened(interval: Interval, differences: np.ndarray, rules: Rules) -> Interval:
    """At least as wide as the score interval of so many samples that changed by the largest difference that was seen.

    Of fewer than five differences, by 1, as from right to wrong: so that seeing one does not make anyone surer than
    seeing none.
    """
    lost, gained = int((differences < 0).sum()), int((differences > 0).sum())
    count = len(differences)
    largest = 1.0 if lost + gained < FEWEST_DIFFERENCES else float(np.abs(differences).max())
    around = tango_interval(lost, gained, count, rules.confidence_level)
    center, shift = float(differences.mean()), (gained - lost) / count
    low = min(interval.low, center + largest * (around.low - shift))
    high = max(interval.high, center + largest * (around.high - shift))
    return Interval(low, high, f"{interval.method}, at least tango")
