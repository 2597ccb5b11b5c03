"""Metrics that are no mean over samples: functions of sums over them, such as the mean intersection over union.

A tally holds what each sample adds to these sums. Both models' tallies are resampled together, in whole units, so that the
interval of the difference is a paired one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pruning_server.evaluation.paired import MIN_BOOTSTRAP_UNITS, mean_interval, tango_interval
from pruning_server.spec.report_accuracy import NamedNumber

RESAMPLES = 4_000
MIN_RESAMPLES = 1_000
_MAX_DRAWS = 40_000_000
# Leaving out one unit at a time costs a row of sums each; beyond this many numbers, units are left out in groups.
_MAX_LEFT_OUT = 4_000_000
_MAX_TABLE = 4_000_000
_BLOCK_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class Tally:
    """What samples add to `columns` sums: sample `rows[i]` adds `amounts[i]` to the sum `places[i]`.

    Attributes:
        samples: how many there are.
        columns: how many sums.
        rows: [m] int64, in [0, samples).
        places: [m] int64, in [0, columns).
        amounts: [m] float64.
    """

    samples: int
    columns: int
    rows: np.ndarray
    places: np.ndarray
    amounts: np.ndarray

    @classmethod
    def dense(cls, values: np.ndarray) -> Tally:
        """Of [n, columns] amounts."""
        rows, places = np.indices(values.shape)
        return cls(
            len(values), int(values.shape[1]), rows.ravel(), places.ravel(), np.asarray(values, np.float64).ravel()
        )

    def by_unit(self, labels: np.ndarray, count: int) -> Tally:
        """With each sample replaced by its unit, `labels` [samples] in [0, count)."""
        return Tally(count, self.columns, labels[self.rows], self.places, self.amounts)

    def sums(self, weights: np.ndarray | None = None) -> np.ndarray:
        """[columns]; `weights` [samples]: how often each sample counts."""
        amounts = self.amounts if weights is None else self.amounts * weights[self.rows]
        return np.bincount(self.places, weights=amounts, minlength=self.columns).astype(np.float64)


@dataclass(frozen=True)
class Functional:
    """A metric of a whole set.

    Attributes:
        name: as in the report.
        value: [...] metrics of [..., columns] sums; not a number where it is not defined.
        larger_is_better: which sign of a difference is a loss.
        is_bounded: whether it lies in [0, 1].
    """

    name: str
    value: Callable[[np.ndarray], np.ndarray]
    larger_is_better: bool = True
    is_bounded: bool = True


def judge_functionals(
    functionals: Sequence[Functional],
    original: Tally,
    pruned: Tally,
    *,
    confidence_level: float,
    seed: int,
    units: np.ndarray | None = None,
) -> tuple[NamedNumber, ...]:
    """Returns every metric of both models, the difference, and its interval.

    With 30 units or more: the bias-corrected and accelerated bootstrap over whole units, the acceleration from leaving
    units out; with fewer, Student's t on the jackknife's pseudo-values. Metrics in [0, 1] that no unit changes get Tango's
    interval for as many units without a discordant pair, others a point.
    Sources: Efron, 1987, JASA 82:171-185; Tukey, 1958, Annals of Mathematical Statistics 29:614 (pseudo-values).

    Args:
        functionals: of these tallies.
        original: of the original, for the same samples in the same order.
        pruned: likewise.
        confidence_level: of the intervals, in (0, 1).
        seed: of the resampling.
        units: [samples]: those with the same number are resampled together; None: each alone.
    """
    labels = np.arange(original.samples) if units is None else np.unique(units, return_inverse=True)[1].reshape(-1)
    count = int(labels.max()) + 1
    pair = (original.by_unit(labels, count), pruned.by_unit(labels, count))
    suffix = "" if units is None else ", whole groups"
    left_out = _sums_left_out(pair, seed)
    resampled = _resampled_sums(pair, seed) if count >= MIN_BOOTSTRAP_UNITS else None
    return tuple(_judge(functional, pair, left_out, resampled, confidence_level, suffix) for functional in functionals)


_Sums = tuple[np.ndarray, np.ndarray]


def _judge(
    functional: Functional,
    pair: tuple[Tally, Tally],
    left_out: _Sums,
    resampled: _Sums | None,
    confidence_level: float,
    suffix: str,
) -> NamedNumber:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        before, after = (float(functional.value(tally.sums())) for tally in pair)
        jackknife = functional.value(left_out[1]) - functional.value(left_out[0])
        draws = None if resampled is None else functional.value(resampled[1]) - functional.value(resampled[0])
    delta = after - before
    number = {"name": functional.name, "larger_is_better": functional.larger_is_better}
    if not np.isfinite(delta):
        known = {"original": before if np.isfinite(before) else None, "pruned": after if np.isfinite(after) else None}
        return NamedNumber(**number, **known)  # type: ignore[arg-type]
    low, high, method = _interval(delta, jackknife, draws, pair[0].samples, confidence_level, functional.is_bounded)
    if functional.is_bounded:
        low, high = max(low, -1.0), min(high, 1.0)
    return NamedNumber(
        name=functional.name,
        larger_is_better=functional.larger_is_better,
        original=before,
        pruned=after,
        delta=delta,
        interval=(low, high),
        interval_method=method + suffix,
    )


def _interval(
    delta: float,
    jackknife: np.ndarray,
    draws: np.ndarray | None,
    units: int,
    confidence_level: float,
    is_bounded: bool,
) -> tuple[float, float, str]:
    known = jackknife[np.isfinite(jackknife)]
    scale = float(np.abs(known).max()) if len(known) else 0.0
    if len(known) < 2 or float(np.ptp(known)) <= 1e-12 * max(scale, 1e-300):
        if not is_bounded:
            return delta, delta, "no spread"
        around = tango_interval(0, 0, units, confidence_level)
        return delta + around.low, delta + around.high, "tango without discordant pairs"
    finite = None if draws is None else draws[np.isfinite(draws)]
    if finite is None or len(finite) < MIN_RESAMPLES // 2:
        pseudo = len(known) * delta - (len(known) - 1) * known
        student = mean_interval(
            pseudo - pseudo.mean() + delta, confidence_level=confidence_level, seed=0, is_bounded=False
        )
        return student.low, student.high, f"{student.method} of jackknife"
    low, high = _bca(delta, known, np.sort(finite), confidence_level)
    return low, high, "bootstrap bca"


def _bca(delta: float, jackknife: np.ndarray, draws: np.ndarray, confidence_level: float) -> tuple[float, float]:
    normal, count = NormalDist(), len(draws)
    below = (np.searchsorted(draws, delta, "left") + np.searchsorted(draws, delta, "right")) / 2.0
    bias = normal.inv_cdf(float(np.clip(below / count, 1.0 / count, 1.0 - 1.0 / count)))
    skew = jackknife.mean() - jackknife
    acceleration = float((skew**3).sum() / (6.0 * max(float((skew**2).sum()), 1e-300) ** 1.5))

    def level(probability: float) -> float:
        shifted = bias + normal.inv_cdf(probability)
        return normal.cdf(bias + shifted / max(1.0 - acceleration * shifted, 1e-6))

    tail = (1.0 - confidence_level) / 2.0
    low, high = np.quantile(draws, [level(tail), level(1.0 - tail)])
    return float(low), float(high)


def _sums_left_out(pair: tuple[Tally, Tally], seed: int) -> _Sums:
    """[g, columns] of each model: all units but one, or but one of g groups of them where there are many."""
    count, columns = pair[0].samples, max(pair[0].columns, 1)
    groups = min(count, max(MIN_BOOTSTRAP_UNITS, _MAX_LEFT_OUT // columns))
    labels = np.arange(count) if groups == count else np.random.default_rng(seed).permutation(count) % groups

    def of(tally: Tally) -> np.ndarray:
        keys = labels[tally.rows] * tally.columns + tally.places
        parts = np.bincount(keys, weights=tally.amounts, minlength=groups * tally.columns)
        return tally.sums() - parts.astype(np.float64).reshape(groups, tally.columns)

    return of(pair[0]), of(pair[1])


def _resampled_sums(pair: tuple[Tally, Tally], seed: int) -> _Sums:
    """[resamples, columns] of each model, from the same draws of units."""
    rng, count = np.random.default_rng(seed), pair[0].samples
    size = count + max(len(tally.amounts) for tally in pair)
    resamples = int(np.clip(_MAX_DRAWS // size, MIN_RESAMPLES, RESAMPLES))
    sums_of = tuple(_weighted_sums(tally) for tally in pair)
    found = tuple(np.empty((resamples, tally.columns)) for tally in pair)
    block = max(1, _BLOCK_WEIGHTS // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        for sums, of in zip(found, sums_of, strict=True):
            sums[start : start + rows] = of(weights)
    return found[0], found[1]


def _weighted_sums(tally: Tally) -> Callable[[np.ndarray], np.ndarray]:
    """[resamples, columns] sums for weights [resamples, samples]: by one product, where the table is small."""
    if tally.samples * tally.columns > _MAX_TABLE:
        return lambda weights: np.stack([tally.sums(row) for row in weights])
    keys = tally.rows * tally.columns + tally.places
    table = np.bincount(keys, weights=tally.amounts, minlength=tally.samples * tally.columns)
    return lambda weights: weights @ table.astype(np.float64).reshape(tally.samples, tally.columns)
