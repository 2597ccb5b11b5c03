"""Whether a change of a model costs less than a margin: a p-value per change, for many changes that are tested at once."""

from __future__ import annotations

import math

import numpy as np

from pruning_server.evaluation.paired import MIN_BOOTSTRAP_UNITS
from pruning_server.evaluation.student import t_cdf


def harm_p_value(
    original: np.ndarray, changed: np.ndarray, units: np.ndarray, margin: float, *, is_binary: bool
) -> float:
    """p-value of the hypothesis that the change costs at least the margin on average; small: it costs less.

    Where samples are right or wrong, exact: if the change costs at least the margin, then at least that share of samples
    is lost, so that the number of losses is at least binomial; gains do not count. Fewer samples never make it smaller,
    if the losses stay. Else Student's t over the samples' differences, and never less than without any difference and
    losses of at most 1: (1 - margin) ** samples. Not below 30 independent samples, or where nothing differs.

    Args:
        original: [n] the metric of the original, at most 1.
        changed: [n] that of the changed model; NaN where it gave no numbers, which rejects nothing.
        units: [n] samples with the same number belong together, and count as one by their mean.
        margin: above 0, in the metric's units.
        is_binary: whether the metric is 0 or 1.
    """
    if not len(original) or not np.isfinite(changed).all():
        return 1.0
    losses = _by_unit(np.asarray(original, np.float64) - np.asarray(changed, np.float64), units)
    least = _binomial_tail(0, len(losses), margin)
    if is_binary:
        return _binomial_tail(int((losses > 0).sum()), len(losses), margin)
    spread = float(losses.std(ddof=1)) if len(losses) > 1 else 0.0
    if len(losses) < MIN_BOOTSTRAP_UNITS or spread == 0.0:
        return 1.0
    distance = (float(losses.mean()) - margin) / (spread / math.sqrt(len(losses)))
    return min(1.0, max(t_cdf(distance, len(losses) - 1), least))


def _by_unit(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    places = np.unique(units, return_inverse=True)[1].reshape(-1)
    return np.bincount(places, weights=values) / np.bincount(places)


def _binomial_tail(most: int, trials: int, probability: float) -> float:
    """P(X <= most) for X binomial."""
    if probability >= 1.0:
        return 1.0 if most >= trials else 0.0
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    k = np.arange(most + 1)
    terms = log_factorial[trials] - log_factorial[k] - log_factorial[trials - k]
    terms += k * math.log(probability) + (trials - k) * math.log1p(-probability)
    return min(1.0, math.fsum(np.exp(terms)))
