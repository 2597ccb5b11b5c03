"""How sure one can be of a mean of paired differences, where samples may come in groups.

Differences are pruned - original; a negative one is a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pruning_server.evaluation.proportions import (
    FEW_PAIRS_CONTINUITY,
    Interval,
    tango_interval,
    tango_p_at_most,
)
from pruning_server.evaluation.student import chi_squared_quantile, t_cdf, t_quantile

# More give steadier ends of the interval; large sets need fewer, and each costs one draw per unit.
MAX_RESAMPLES = 4_000
MIN_RESAMPLES = 1_000
_MAX_DRAWS = 10_000_000
_BLOCK_DRAWS = 1 << 20
# More are put together at random: their sums vary as much, and are as independent.
_MAX_RESAMPLED_UNITS = 10_000
# Resamples of fewer units are too often all the same unit.
_MIN_RESAMPLED_UNITS = 5
# With fewer changed units, what was seen says next to nothing of how much a changed unit changes.
_FEW_CHANGES = 6
# A unit has changed if it is off the middle one by this share of the one that is off most.
_CHANGED_SHARE = 0.05
_UNSEEN_LEVEL = 0.05
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class _FewChanges:
    """Units of which only few differ from the rest: counted like discordant pairs, each weighing `weight`."""

    lost: int
    gained: int
    units: int
    weight: float

    @property
    def estimate(self) -> float:
        return (self.gained - self.lost) / self.units

    def reach(self, confidence_level: float) -> tuple[float, float]:
        """How far the interval goes below and above the estimate."""
        found = tango_interval(self.lost, self.gained, self.units, confidence_level, continuity=FEW_PAIRS_CONTINUITY)
        return self.weight * (self.estimate - found.low), self.weight * (found.high - self.estimate)

    def p_below(self, distance: float) -> float:
        """One-sided p-value against a true value at least `distance` below the estimate."""
        supposed = self.estimate - distance / self.weight
        return tango_p_at_most(self.lost, self.gained, self.units, supposed, continuity=FEW_PAIRS_CONTINUITY)

    def mirrored(self) -> _FewChanges:
        """With gains and losses swapped."""
        return _FewChanges(self.gained, self.lost, self.units, self.weight)


@dataclass(frozen=True)
class MeanDifference:
    """The mean of paired differences; made by `mean_difference`.

    Attributes:
        estimate: the mean.
        error: its standard error over independent units; 0: there is no spread.
        units: independent ones.
        studentized: [resamples], sorted: distances of resampled means in units of their own errors; None: not resampled.
        few: where only few units differ from the rest.
        is_bounded: whether differences lie in [-1, 1].
        grouped: whether units hold several samples.
    """

    estimate: float
    error: float
    units: int
    studentized: np.ndarray | None
    few: _FewChanges | None
    is_bounded: bool
    grouped: bool

    @property
    def method(self) -> str:
        """Of the interval and the tests."""
        suffix = ", whole groups" if self.grouped else ""
        if not self.error:
            return f"tango without discordant pairs{suffix}" if self.is_bounded else f"no spread{suffix}"
        if self.few is not None:
            return f"score of few changed units{suffix}"
        return f"{'student t' if self.studentized is None else 'bootstrap-t'}{suffix}"

    def interval(self, confidence_level: float) -> Interval:
        """The confidence interval; `confidence_level` in (0, 1)."""
        below, above = self._reach(confidence_level)
        low, high = self.estimate - below, self.estimate + above
        if self.is_bounded and self.error:
            low, high = max(low, -1.0), min(high, 1.0)
        return Interval(low, high, self.method)

    def _reach(self, confidence_level: float) -> tuple[float, float]:
        if not self.error:
            if not self.is_bounded:
                return 0.0, 0.0
            around = tango_interval(0, 0, self.units, confidence_level)
            return -around.low, around.high
        student = t_quantile(0.5 + confidence_level / 2.0, self.units - 1)
        below = above = student * self.error
        if self.few is not None:
            far_below, far_above = self.few.reach(confidence_level)
        elif self.studentized is not None:
            tail = (1.0 - confidence_level) / 2.0
            far_below = _upper_end(self.studentized, tail) * self.error
            far_above = _upper_end(-self.studentized[::-1], tail) * self.error
        else:
            return below, above
        return max(below, far_below), max(above, far_above)

    def p_at_most(self, difference: float) -> float | None:
        """One-sided p-value against a true mean of at most `difference`; None where nothing varies.

        Below (1 - confidence level) / 2 where, and only where, the interval lies above `difference`, up to the ends of the
        range and to confidence levels that the number of resamples can tell apart.
        """
        if not self.error:
            return None
        return self._p(self.estimate - difference, self.studentized, self.few)

    def p_equal(self) -> float:
        """Two-sided p-value against a true mean of 0; where nothing varies, that of the sign test."""
        if not self.error:
            return 1.0 if abs(self.estimate) <= _NO_SPREAD else min(1.0, 2.0 * 0.5**self.units)
        mirrored = None if self.studentized is None else -self.studentized[::-1]
        low = self._p(self.estimate, self.studentized, self.few)
        high = self._p(-self.estimate, mirrored, self.few.mirrored() if self.few else None)
        return min(1.0, 2.0 * min(low, high))

    def _p(self, distance: float, studentized: np.ndarray | None, few: _FewChanges | None) -> float:
        """Against a true value that lies `distance` below the estimate."""
        observed = distance / self.error
        student = t_cdf(-observed, self.units - 1)
        if few is not None:
            return max(student, few.p_below(distance))
        if studentized is None:
            return student
        beyond = len(studentized) - int(np.searchsorted(studentized, observed, "left"))
        smallest = 1.0 / (len(studentized) + 1)
        # Beyond all resamples, only Student's t can tell how far.
        return max(student, (beyond + 1) * smallest) if beyond else min(student, smallest)


def mean_difference(
    differences: np.ndarray,
    *,
    seed: int,
    units: np.ndarray | None = None,
    is_bounded: bool = True,
    resamples: int | None = None,
) -> MeanDifference:
    """Returns what paired differences say of their true mean, with whole units resampled.

    The interval is the studentized bootstrap's, and nowhere within Student's: it keeps its level for skewed differences
    where percentiles and the accelerated bootstrap fall short (`docs/statistics.md`). Where fewer than six units differ
    from the rest, Tango's score interval for as many discordant units takes the bootstrap's place, each weighing as much as
    what changes may: the mean of those seen at the 95 % upper end for an exponential spread, or the largest. Where nothing
    varies, only the number of units bounds what was not seen, if differences lie in [-1, 1]; else the interval is a point.
    Sources: Efron, 1982, The Jackknife, the Bootstrap and Other Resampling Plans, ch. 10.10; Hall, 1988, Annals of
    Statistics 16:927-953; Field and Welsh, 2007, JRSS B 69:369-390 (clusters).

    Args:
        differences: [n] pruned - original, finite, n at least 1.
        seed: of the resampling.
        units: [n]: samples with the same number are resampled together; None: each alone.
        is_bounded: whether differences lie in [-1, 1].
        resamples: how many; None: 4,000, fewer for more than 2,500 units.

    Raises:
        ValueError: there are no differences, or some are not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("differences must be finite, and at least one")
    sums, sizes = sum_by_unit(values, units)
    return difference_of_sums(
        sums, sizes, seed=seed, is_bounded=is_bounded, grouped=units is not None, resamples=resamples
    )


def difference_of_sums(
    sums: np.ndarray,
    sizes: np.ndarray,
    *,
    seed: int,
    is_bounded: bool,
    grouped: bool = True,
    resamples: int | None = None,
) -> MeanDifference:
    """Returns `mean_difference` of units with the given sums of differences.

    Args:
        sums: [units] of the differences of a unit's samples.
        sizes: [units] how many samples it has, above 0.
        seed: of the resampling.
        is_bounded: whether a sample's difference lies in [-1, 1].
        grouped: whether units hold several samples.
        resamples: as for `mean_difference`; 0: none, Student's t alone.
    """
    count, center = len(sums), float(sums.sum() / sizes.sum())
    deviations = sums - center * sizes
    scale = max(float(np.abs(sums / sizes).max()), 1e-300)
    if count == 1 or float(np.abs(deviations).max()) <= _NO_SPREAD * scale * float(sizes.max()):
        return MeanDifference(center, 0.0, count, None, None, is_bounded, grouped)
    bounded = is_bounded and scale <= 1.0
    few = _few_changes(sums, sizes, is_bounded=bounded)
    studentized = None
    if resamples is None:
        resamples = min(max(_MAX_DRAWS // count, MIN_RESAMPLES), MAX_RESAMPLES)
    if few is None and resamples and count >= _MIN_RESAMPLED_UNITS:
        studentized = _studentized(deviations, sizes, np.random.default_rng(seed), resamples)
    error = standard_error(deviations, sizes)
    return MeanDifference(center, error, count, studentized, few, bounded, grouped)


def sum_by_unit(values: np.ndarray, units: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums and numbers of samples of each unit."""
    if units is None:
        return values, np.ones(len(values))
    labels = np.unique(units, return_inverse=True)[1].reshape(-1)
    return np.bincount(labels, weights=values), np.bincount(labels).astype(np.float64)


def standard_error(deviations: np.ndarray, sizes: np.ndarray) -> float:
    """Of a ratio of sums over independent units, by linearization."""
    count = len(deviations)
    return float(math.sqrt(count / (count - 1) * float(np.square(deviations).sum())) / sizes.sum())


def _few_changes(sums: np.ndarray, sizes: np.ndarray, *, is_bounded: bool) -> _FewChanges | None:
    """Units off the middle one, if there are only few of many."""
    means = sums / sizes
    middle = float(np.median(means))
    off = means - middle
    changed = np.abs(off) > _CHANGED_SHARE * float(np.abs(off).max())
    count, many = int(changed.sum()), len(sums)
    if count >= _FEW_CHANGES or 2 * count > many:
        return None
    weights = np.abs(sums - middle * sizes) / sizes.mean()
    unseen = 2.0 * count / chi_squared_quantile(_UNSEEN_LEVEL, count)
    weight = max(float(weights.max()), float(weights[changed].mean()) * unseen)
    if is_bounded:
        weight = min(weight, float(sizes.max() / sizes.mean()))
    return _FewChanges(int((changed & (off < 0)).sum()), int((changed & (off > 0)).sum()), many, weight)


def _studentized(deviations: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Sorted distances of resampled means from the mean, in units of each resample's own standard error."""
    if len(deviations) > _MAX_RESAMPLED_UNITS:
        places = rng.permutation(len(deviations)) % _MAX_RESAMPLED_UNITS
        deviations, sizes = np.bincount(places, weights=deviations), np.bincount(places, weights=sizes)
    count = len(deviations)
    columns = np.stack([deviations, sizes, deviations**2, deviations * sizes, sizes**2], axis=1)
    least = _NO_SPREAD * float(columns[:, 2].max())
    found = [_ratios(counts @ columns, count, least) for counts in _resampled_counts(count, resamples, rng)]
    return np.sort(np.concatenate(found))


def _resampled_counts(count: int, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Blocks [rows, count] of how often each unit is in a resample, so that memory stays small."""
    rows = max(1, min(_BLOCK_DRAWS // count, resamples))
    counts = np.empty((rows, count))
    for start in range(0, resamples, rows):
        part = min(rows, resamples - start)
        for row, drawn in enumerate(rng.integers(count, size=(part, count))):
            counts[row] = np.bincount(drawn, minlength=count)
        yield counts[:part]


def _ratios(totals: np.ndarray, count: int, least: float) -> np.ndarray:
    """[rows] studentized means of resamples from their sums; infinite where a resample does not vary."""
    total, size, square, mixed, squares = totals.T
    shift = total / size
    spread = square - 2.0 * shift * mixed + np.square(shift) * squares
    errors = np.sqrt(count / (count - 1) * np.maximum(spread, 0.0)) / size
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = shift / np.where(spread > least, errors, 0.0)
    return np.asarray(np.nan_to_num(ratios, nan=0.0, posinf=np.inf, neginf=-np.inf))


def _upper_end(studentized: np.ndarray, tail: float) -> float:
    """What a share of `tail` of the sorted values lies above; the largest finite one where that is not finite."""
    place = min(math.ceil((1.0 - tail) * (len(studentized) + 1)), len(studentized)) - 1
    value = float(studentized[place])
    return value if math.isfinite(value) else float(studentized[np.isfinite(studentized)].max(initial=0.0))
