"""Learn-then-Test: the most pruned of some candidates whose loss is certified to stay within what the caller accepts.

The candidates and their order, from the least to the most pruned, are fixed before the calibrate split is looked at. Each
is tested at the full level and the first that fails ends the sequence, which keeps the probability of certifying any model
that is worse below that level, however many candidates there are and however alike.

Sources: Angelopoulos, Bates, Candes, Jordan and Lei, 2021, arXiv:2110.01052 (Learn then Test, fixed sequences);
Laufer-Goldshtein, Fisch, Barzilay and Jaakkola, 2024, arXiv:2408.04759 (pruning).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np

from pruning_server.evaluation.bounds import MeanBound, fewest_values
from pruning_server.evaluation.metrics import Metric

T = TypeVar("T")
R = TypeVar("R")

POWER = 0.8
# Betting needs about a fifth more than the normal approximation says.
BETTING_OVERHEAD = 1.2


@dataclass(frozen=True)
class RiskTest:
    """What the calibrate split says of one candidate.

    Attributes:
        loss: mean over units of original - pruned, in the metric's units.
        bound: at least the true loss, with probability 1 - error_probability for this candidate alone.
        p_value: of the supposition that the true loss is at least what the caller accepts.
        certified: whether the bound is within what the caller accepts.
        units: independent observations.
        needed_units: about how many would be needed to certify this candidate with a probability of 80 %, if others are
            like these; None where no number would do.
    """

    loss: float
    bound: float
    p_value: float
    certified: bool
    units: int
    needed_units: int | None


def spread_of(metric: Metric) -> float | None:
    """The largest possible difference of two models on one sample; None where there is none."""
    if metric.name in {"accuracy", "exact_match", "element_accuracy", "agreement"}:
        return 1.0
    return 2.0 if metric.name == "cosine_similarity" else None


def unit_means(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Returns the mean of each unit's values: [number of distinct units], ordered by their numbers.

    Samples of one unit (duplicates, or what the caller groups) are one observation: the promise is for a unit drawn as
    these were.

    Args:
        values: [n].
        units: [n] int64.
    """
    _, places = np.unique(units, return_inverse=True)
    places = places.reshape(-1)
    counts = np.bincount(places)
    return np.asarray(np.bincount(places, weights=np.asarray(values, np.float64)) / counts)


def judge_losses(losses: np.ndarray, max_loss: float, bound: MeanBound) -> RiskTest:
    """Tests one candidate on its own.

    Args:
        losses: [units] original - pruned; one that is no number counts as the largest loss.
        max_loss: what the caller accepts, in (0, spread).
        bound: how the mean is bounded.
    """
    known = np.where(np.isfinite(losses), losses, bound.spread)
    upper = bound.upper(known, also=(max_loss,))
    return RiskTest(
        loss=float(known.mean()),
        bound=upper,
        p_value=float(bound.p_values(known, [max_loss])[0]),
        certified=upper <= max_loss,
        units=len(known),
        needed_units=needed_units(known, max_loss, bound),
    )


def needed_units(losses: np.ndarray, max_loss: float, bound: MeanBound) -> int | None:
    """Returns about how many units like these would certify the candidate with a probability of 80 %.

    By the normal approximation with the variance of these losses, a fifth more for betting, and what it takes where nothing
    is lost at all. None where the mean of these losses is not below what is accepted.
    """
    distance = max_loss - float(np.mean(losses))
    if distance <= 0:
        return None
    normal = NormalDist()
    deviations = normal.inv_cdf(1.0 - bound.error_probability) + normal.inv_cdf(POWER)
    by_variance = (max(deviations, 0.0) / distance) ** 2 * float(np.var(losses)) * BETTING_OVERHEAD
    return math.ceil(by_variance) + fewest_values(max_loss, bound.error_probability, spread=bound.spread)


def run_sequence(candidates: Iterable[T], test: Callable[[T], R], passes: Callable[[R], bool]) -> tuple[R, ...]:
    """Tests the candidates in their order up to the first that does not pass; that one's result is the last."""
    results: list[R] = []
    for candidate in candidates:
        results.append(test(candidate))
        if not passes(results[-1]):
            break
    return tuple(results)
