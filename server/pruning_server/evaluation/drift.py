"""How far new data is from the data of an earlier job, from small histograms that the earlier report holds.

A *feature* is one number per sample: the mean or the spread of an input, the mean of one of its channels, how sure the model
is. Its histogram has `BINS` bins between quantiles of the earlier data, so that each held about as much then. Two
histograms are compared by the population stability index

    PSI = sum over bins of (q - p) ln(q / p),        p, q: shares then and now, (count + 1/2) / (samples + bins / 2)

(Siddiqi 2006, "Credit Risk Scorecards": below 0.1 stable, above 0.25 another population) and by the largest difference of
the two distribution functions at the bins' edges, a lower bound of Kolmogorov and Smirnov's statistic. By chance alone
PSI / (1/n + 1/m) is about chi-square distributed with bins - 1 degrees of freedom (Yurdakul 2018, "Statistical Properties
of the Population Stability Index"): a feature has drifted if it is above 0.1 and above the 99.9 % point of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pruning_server.spec.report import FeatureHistogram
from pruning_server.spec.report_strategy import DriftedFeature

BINS = 10
STABLE_PSI = 0.1
# The 99.9 % point of the standard normal distribution.
_NORMAL_POINT = 3.0902


def describe(values: np.ndarray) -> FeatureHistogram:
    """The histogram of a feature [n] between its own quantiles; values that are not finite are left out."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return FeatureHistogram(edges=(), counts=(0,))
    edges = np.unique(np.quantile(finite, np.arange(1, BINS) / BINS))
    return FeatureHistogram(edges=tuple(edges.tolist()), counts=_counts(finite, edges))


def describe_classes(classes: np.ndarray, number: int) -> FeatureHistogram:
    """The histogram of class numbers [n]; one bin per class, edges between them."""
    edges = np.arange(1, number) - 0.5
    return FeatureHistogram(edges=tuple(edges.tolist()), counts=_counts(classes.astype(np.float64), edges))


def find_drift(before: Mapping[str, FeatureHistogram], now: Mapping[str, np.ndarray]) -> tuple[DriftedFeature, ...]:
    """Every feature that both have, those that moved most first."""
    found = [_compare(name, before[name], values) for name, values in now.items() if name in before]
    return tuple(sorted(found, key=lambda one: -one.psi))


def _compare(name: str, before: FeatureHistogram, values: np.ndarray) -> DriftedFeature:
    edges = np.asarray(before.edges, dtype=np.float64)
    counts = _counts(values[np.isfinite(values)].astype(np.float64), edges)
    then, now = _shares(before.counts), _shares(counts)
    psi = float(((now - then) * np.log(now / then)).sum())
    samples = sum(before.counts), sum(counts)
    chance = chance_psi(len(counts), *samples)
    raw_then, raw_now = (np.cumsum(one) / max(1, sum(one)) for one in (before.counts, counts))
    return DriftedFeature(
        name=name,
        psi=psi,
        chance_psi=chance,
        ks=float(np.abs(raw_then - raw_now).max()),
        drifted=min(samples) > 0 and psi > max(STABLE_PSI, chance),
        samples=samples,
    )


def chance_psi(bins: int, one: int, other: int) -> float:
    """What the index stays below in 999 of 1,000 cases where nothing has changed; 0 where nothing can be compared."""
    if not one or not other or bins < 2:
        return 0.0
    freedom = bins - 1
    # Wilson & Hilferty 1931: the cube root of a chi-square variable is about normal.
    part = 2 / (9 * freedom)
    point = freedom * (1 - part + _NORMAL_POINT * math.sqrt(part)) ** 3
    return point * (1 / one + 1 / other)


def _counts(values: np.ndarray, edges: np.ndarray) -> tuple[int, ...]:
    """How many fall below the first edge, between two, and from the last one on."""
    places = np.searchsorted(edges, values, side="right")
    return tuple(np.bincount(places, minlength=len(edges) + 1).tolist())


def _shares(counts: Sequence[int]) -> np.ndarray:
    held = np.asarray(counts, dtype=np.float64)
    return np.asarray((held + 0.5) / (held.sum() + 0.5 * len(held)))
