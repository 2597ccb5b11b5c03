"""Paired statistics: how sure one can be of the difference of two models that saw the same samples.

Differences are pruned - original; a negative one is a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# More give steadier ends of the interval; large sets need fewer, and each costs one draw per unit.
MAX_RESAMPLES = 10_000
MIN_RESAMPLES = 2_000
_MAX_DRAWS = 40_000_000
# Below this many independent units the bootstrap's intervals are too short; Student's t takes their place.
MIN_BOOTSTRAP_UNITS = 30
DETECTION_POWER = 0.8
_BISECTION_STEPS = 200
_BLOCK_DRAWS = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A confidence interval and the name of its method."""

    low: float
    high: float
    method: str


def tango_interval(right_to_wrong: int, wrong_to_right: int, samples: int, confidence_level: float) -> Interval:
    """Score interval of the difference of two paired proportions, (wrong_to_right - right_to_wrong) / samples.

    Keeps its level for few and for no discordant pairs, where Wald's interval has no width.
    Source: Tango, 1998, Statistics in Medicine 17:891-908.

    Args:
        right_to_wrong: samples that only the original has right, at least 0.
        wrong_to_right: samples that only the pruned model has right, at least 0.
        samples: all of them, at least 1.
        confidence_level: in (0, 1).

    Raises:
        ValueError: the counts do not fit together.
    """
    if samples < 1 or min(right_to_wrong, wrong_to_right) < 0 or right_to_wrong + wrong_to_right > samples:
        raise ValueError(f"{right_to_wrong} and {wrong_to_right} are not discordant pairs of {samples} samples")
    z = NormalDist().inv_cdf(0.5 + confidence_level / 2)
    estimate = (wrong_to_right - right_to_wrong) / samples

    def score(difference: float) -> float:
        return _tango_score(wrong_to_right, right_to_wrong, samples, difference)

    low = _bisect(lambda d: score(d) > z, -1.0, estimate)
    high = _bisect(lambda d: score(d) >= -z, estimate, 1.0)
    return Interval(low, high, "tango")


def _tango_score(gained: int, lost: int, samples: int, difference: float) -> float:
    """Standardized distance of the estimate from a supposed difference; falls as the difference grows."""
    a = 2.0 * samples
    b = -gained - lost + (2.0 * samples - gained + lost) * difference
    c = -lost * difference * (1.0 - difference)
    # The smaller discordant probability under the supposed difference, by maximum likelihood.
    lost_probability = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = samples * (2.0 * lost_probability + difference * (1.0 - difference))
    distance = gained - lost - samples * difference
    if variance <= 0.0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _bisect(lies_left: Callable[[float], bool], low: float, high: float) -> float:
    """The point between low and high up to which `lies_left` holds."""
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2.0
        if middle in {low, high}:
            break
        if lies_left(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def mcnemar_exact(right_to_wrong: int, wrong_to_right: int) -> float:
    """Two-sided exact p-value of McNemar's test: discordant pairs are equally likely either way.

    Source: McNemar, 1947, Psychometrika 12:153-157; exact binomial form. 1.0 where there is no discordant pair.
    """
    discordant = right_to_wrong + wrong_to_right
    fewer = min(right_to_wrong, wrong_to_right)
    if 2 * fewer >= discordant - 1:
        return 1.0
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, discordant + 1)))])
    k = np.arange(fewer + 1)
    log_terms = log_factorial[discordant] - log_factorial[k] - log_factorial[discordant - k]
    tail = math.fsum(np.exp(log_terms - discordant * math.log(2.0)))
    return min(1.0, 2.0 * tail)


def mean_interval(
    differences: np.ndarray,
    *,
    confidence_level: float,
    seed: int,
    units: np.ndarray | None = None,
    is_bounded: bool = True,
    resamples: int | None = None,
) -> Interval:
    """Confidence interval of the mean of paired differences, resampling whole units.

    With 30 units or more: the bias-corrected and accelerated bootstrap, chosen over percentiles because differences of
    losses are skewed. With fewer: Student's t on the units, since the bootstrap's intervals are then too short. If the
    samples give no spread at all, nothing but their number bounds what was not seen: Tango's interval for as many units
    without a discordant pair, where differences are bounded to [-1, 1]; else the interval is a point.
    Sources: Efron, 1987, JASA 82:171-185; Field and Welsh, 2007, JRSS B 69:369-390 (clusters).

    Args:
        differences: [n] pruned - original, finite, n at least 1.
        confidence_level: in (0, 1).
        seed: of the resampling.
        units: [n]: samples with the same number are resampled together; None: each alone.
        is_bounded: whether differences lie in [-1, 1].
        resamples: how many; None: 10,000, fewer for more than 4,000 units.

    Raises:
        ValueError: there are no differences, or some are not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("differences must be finite, and at least one")
    sums, sizes = _sum_by_unit(values, units)
    suffix = "" if units is None else ", whole groups"
    center = float(sums.sum() / sizes.sum())
    deviations = sums - center * sizes
    scale = float(np.abs(values).max())
    if len(sums) == 1 or float(np.abs(deviations).max()) <= 1e-12 * max(scale, 1e-300):
        if not is_bounded:
            return Interval(center, center, f"no spread{suffix}")
        around = tango_interval(0, 0, len(sums), confidence_level)
        return Interval(center + around.low, center + around.high, f"tango without discordant pairs{suffix}")
    if len(sums) < MIN_BOOTSTRAP_UNITS:
        half = _t_quantile(0.5 + confidence_level / 2, len(sums) - 1) * _standard_error(deviations, sizes)
        return Interval(center - half, center + half, f"student t{suffix}")
    if resamples is None:
        resamples = min(max(_MAX_DRAWS // len(sums), MIN_RESAMPLES), MAX_RESAMPLES)
    low, high = _bca(sums, sizes, center, confidence_level, np.random.default_rng(seed), resamples)
    return Interval(low, high, f"bootstrap bca{suffix}")


def _sum_by_unit(values: np.ndarray, units: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if units is None:
        return values, np.ones(len(values))
    labels = np.unique(units, return_inverse=True)[1].reshape(-1)
    return np.bincount(labels, weights=values), np.bincount(labels).astype(np.float64)


def _standard_error(deviations: np.ndarray, sizes: np.ndarray) -> float:
    """Of a ratio of sums over independent units, by linearization."""
    count = len(deviations)
    return float(math.sqrt(count / (count - 1) * float(np.square(deviations).sum())) / sizes.sum())


def _bca(
    sums: np.ndarray,
    sizes: np.ndarray,
    center: float,
    confidence_level: float,
    rng: np.random.Generator,
    resamples: int,
) -> tuple[float, float]:
    means = np.sort(_resampled_means(sums, sizes, rng, resamples))
    below = (np.searchsorted(means, center, "left") + np.searchsorted(means, center, "right")) / 2.0
    normal = NormalDist()
    bias = normal.inv_cdf(float(np.clip(below / resamples, 1.0 / resamples, 1.0 - 1.0 / resamples)))
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    skew = left_out.mean() - left_out
    acceleration = float((skew**3).sum() / (6.0 * max(float((skew**2).sum()), 1e-300) ** 1.5))

    def level(probability: float) -> float:
        shifted = bias + normal.inv_cdf(probability)
        return normal.cdf(bias + shifted / max(1.0 - acceleration * shifted, 1e-6))

    tail = (1.0 - confidence_level) / 2.0
    low, high = np.quantile(means, [level(tail), level(1.0 - tail)])
    return float(low), float(high)


def _resampled_means(sums: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Means of resamples of the units, with replacement, drawn in blocks so that memory stays small."""
    count = len(sums)
    rows = max(1, _BLOCK_DRAWS // count)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = rng.integers(count, size=(min(rows, resamples - start), count), dtype=np.int32)
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, by bisection on its distribution function."""
    return _bisect(lambda t: _t_cdf(t, degrees) < probability, 0.0, 1e4)


def _t_cdf(t: float, degrees: int) -> float:
    """Distribution function of Student's t for t >= 0, by the finite sums for whole degrees of freedom.

    Source: Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    if degrees % 2:
        term, total = cosine, 0.0
        for k in range(1, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        probability = 2.0 / math.pi * (angle + math.sin(angle) * total)
    else:
        term, total = 1.0, 0.0
        for k in range(0, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        probability = math.sin(angle) * total
    return 0.5 + probability / 2.0


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
    sums, sizes = _sum_by_unit(values, units)
    if len(sums) < 2:
        return math.inf
    floor = float(sizes.mean() / sizes.sum())
    error = max(_standard_error(sums - values.mean() * sizes, sizes), floor)
    normal = NormalDist()
    return (normal.inv_cdf(0.5 + confidence_level / 2) + normal.inv_cdf(DETECTION_POWER)) * error
