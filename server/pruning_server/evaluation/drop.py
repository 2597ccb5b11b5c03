"""The largest pruning whose loss stays within a budget: how a loss is bounded from above, and how few bounds a search needs.

Nothing is accepted on a point estimate: of many candidates the one that looks best by chance would be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pruning_server.evaluation.judgement import independent_units
from pruning_server.evaluation.paired import mean_interval, tango_interval

POWER = 0.8


@dataclass(frozen=True)
class DropBound:
    """How much of the metric a candidate loses.

    Attributes:
        drop: mean of original - pruned; `deviation`: standard deviation of it over samples.
        upper: one-sided upper confidence bound of it.
        samples: that both models were judged on.
        method: of the bound.
    """

    drop: float
    deviation: float
    upper: float
    samples: int
    method: str


def bound_drop(
    original: np.ndarray,
    pruned: np.ndarray,
    *,
    error_probability: float,
    is_binary: bool,
    is_bounded: bool = True,
    units: np.ndarray | None = None,
    seed: int = 0,
) -> DropBound:
    """Bounds the loss of the metric from above, at a one-sided level of 1 - error_probability.

    Right-or-wrong metrics get Tango's score bound, others the bootstrap's, both as in the report; a pruned model whose
    values are no numbers gets an infinite one.

    Args:
        original: [n] values of the metric, larger is better, n at least 1.
        pruned: likewise, sample by sample.
        error_probability: in (0, 0.5).
        is_binary: whether all values are 0 or 1.
        is_bounded: whether differences lie in [-1, 1].
        units: [n]: samples with the same number are one observation.
        seed: of the resampling.
    """
    before, after = np.asarray(original, np.float64), np.asarray(pruned, np.float64)
    if not np.isfinite(after).all():
        return DropBound(math.inf, math.inf, math.inf, len(after), "not_finite")
    level, groups = 1.0 - 2.0 * error_probability, independent_units(units)
    if is_binary and groups is None:
        lost, gained = int(((before > 0.5) & (after <= 0.5)).sum()), int(((before <= 0.5) & (after > 0.5)).sum())
        interval = tango_interval(lost, gained, len(after), level)
    else:
        interval = mean_interval(after - before, confidence_level=level, seed=seed, units=groups, is_bounded=is_bounded)
    losses = before - after
    return DropBound(float(losses.mean()), float(losses.std()), -interval.low, len(after), interval.method)


def needed_samples(
    bound: DropBound, max_drop: float, error_probability: float, *, is_bounded: bool = True
) -> int | None:
    """Returns about how many samples show with a probability of 80 % that such a candidate loses at most `max_drop`.

    By the normal approximation, and what it takes where nothing is lost at all (`fewest_samples`). None where the candidate
    itself does not lose less than `max_drop`.

    Args:
        bound: what is known of the candidate.
        max_drop: the budget.
        error_probability: of one bound.
        is_bounded: whether losses lie in [-1, 1].
    """
    distance = max_drop - bound.drop
    if not distance > 0:
        return None
    normal = NormalDist()
    errors = normal.inv_cdf(1.0 - error_probability) + normal.inv_cdf(POWER)
    by_deviation = math.ceil((errors * bound.deviation / distance) ** 2)
    return by_deviation + (fewest_samples(max_drop, error_probability) if is_bounded else 1)


def fewest_samples(max_drop: float, error_probability: float) -> int:
    """Returns how many samples Tango's bound needs to promise a drop of at most `max_drop` > 0, if none changes.

    Where no sample changes the bound is z^2 / (n + z^2).
    """
    z = NormalDist().inv_cdf(1.0 - error_probability)
    return max(1, math.ceil(z * z * (1.0 - max_drop) / max_drop - 1e-9))


# --- Search -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One candidate that was tried: its place in the ladder, and its bound; None where it cannot be made."""

    rung: int
    bound: DropBound | None
    accepted: bool


def most_steps(rungs: int) -> int:
    """How many candidates a search among so many rungs tries at most."""
    return rungs.bit_length()


def search(rungs: int, bound: Callable[[int], DropBound | None], max_drop: float) -> tuple[Step, ...]:
    """Halves the ladder until the most pruned rung whose bound is within `max_drop` is found.

    Where losses grow along the ladder the rungs that lose too much and are tried before any such is accepted do not
    depend on chance: they are those that a search with perfect knowledge tries. There are at most `most_steps(rungs)`, so
    with bounds at an error probability of that fraction the search accepts one of them with that probability at most
    (Bonferroni).

    Args:
        rungs: how many there are, from the least to the most pruned.
        bound: of the rung with this number; None where the model cannot be pruned so far.
        max_drop: the budget.
    """
    steps: list[Step] = []
    low, high = -1, rungs
    while high - low > 1:
        middle = (low + high) // 2
        found = bound(middle)
        accepted = found is not None and found.upper <= max_drop
        steps.append(Step(middle, found, accepted))
        low, high = (middle, high) if accepted else (low, middle)
    return tuple(steps)


def chosen_rung(steps: tuple[Step, ...]) -> int | None:
    """The most pruned rung that was accepted."""
    return max((step.rung for step in steps if step.accepted), default=None)
