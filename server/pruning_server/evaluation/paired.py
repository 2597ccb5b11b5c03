"""Paired statistics: how sure one can be of the difference of two models that saw the same samples.

Differences are pruned - original; a negative one is a loss.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from pruning_server.evaluation.means import MeanDifference, mean_difference, standard_error, sum_by_unit
from pruning_server.evaluation.proportions import Interval, PairedProportions, mcnemar_exact, tango_interval

__all__ = [
    "DETECTION_POWER",
    "MIN_BOOTSTRAP_UNITS",
    "Difference",
    "Interval",
    "compare",
    "interval_between_sets",
    "mcnemar_exact",
    "mean_difference",
    "mean_interval",
    "smallest_detectable_loss",
    "tango_interval",
]

# Below this many independent units a plain bootstrap's intervals are too short.
MIN_BOOTSTRAP_UNITS = 30
DETECTION_POWER = 0.8

Difference = PairedProportions | MeanDifference


def compare(
    original: np.ndarray,
    pruned: np.ndarray,
    *,
    is_binary: bool,
    seed: int,
    units: np.ndarray | None = None,
    resamples: int | None = None,
) -> Difference:
    """Returns what both models' values on the same samples say of the true difference of their means.

    Args:
        original: [n] of the original, n at least 1.
        pruned: [n] of the pruned model.
        is_binary: whether values are 0 or 1.
        seed: of the resampling.
        units: [n]: samples with the same number are not independent; None: all are.
        resamples: as for `mean_difference`.
    """
    before, after = np.asarray(original, np.float64), np.asarray(pruned, np.float64)
    if is_binary and units is None:
        lost, gained = int(((before > 0.5) & (after <= 0.5)).sum()), int(((before <= 0.5) & (after > 0.5)).sum())
        return PairedProportions(lost, gained, len(before))
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    bounded = bool(low >= 0.0 and high <= 1.0)
    return mean_difference(after - before, seed=seed, units=units, is_bounded=bounded, resamples=resamples)


def mean_interval(
    differences: np.ndarray,
    *,
    confidence_level: float,
    seed: int,
    units: np.ndarray | None = None,
    is_bounded: bool = True,
    resamples: int | None = None,
) -> Interval:
    """The confidence interval of `mean_difference`; `confidence_level` in (0, 1)."""
    found = mean_difference(differences, seed=seed, units=units, is_bounded=is_bounded, resamples=resamples)
    return found.interval(confidence_level)


def interval_between_sets(first: tuple[float, Interval], second: tuple[float, Interval]) -> tuple[float, float]:
    """Interval of first - second, two estimates on different samples, from the interval of each.

    Source: Zou and Donner, 2008, Statistics in Medicine 27:1693-1702 (MOVER).
    """
    (a, around_a), (b, around_b) = first, second
    below = math.hypot(a - around_a.low, around_b.high - b)
    above = math.hypot(around_a.high - a, b - around_b.low)
    return a - b - below, a - b + above


def smallest_detectable_loss(
    differences: np.ndarray, confidence_level: float, units: np.ndarray | None = None
) -> float:
    """The loss that a set of this size would show with a probability of 80 %, in the metric's units.

    By the normal approximation, with the spread of the differences that were seen; at least as large as if one unit had
    lost 1. Larger than the margin: the set is too small to tell.

    Args:
        differences: [n] pruned - original.
        confidence_level: of the two-sided interval.
        units: as for `mean_interval`.
    """
    values = np.asarray(differences, dtype=np.float64)
    sums, sizes = sum_by_unit(values, units)
    if len(sums) < 2:
        return math.inf
    floor = float(sizes.mean() / sizes.sum())
    error = max(standard_error(sums - values.mean() * sizes, sizes), floor)
    normal = NormalDist()
    return (normal.inv_cdf(0.5 + confidence_level / 2) + normal.inv_cdf(DETECTION_POWER)) * error
