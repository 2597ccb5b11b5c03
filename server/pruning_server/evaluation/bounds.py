"""Finite-sample bounds for the mean of bounded values: they hold for every n and every distribution.

A p-value here tests the supposition that the mean is at least some number; a small one says that it is smaller. An upper
bound is the smallest mean above which every supposition is rejected.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The share of the wealth that no bet may risk: with all of it a single bad value would end the game.
MAX_STAKE = 0.9
# Variance of a value in [0, 1] before any is seen: the largest that there is.
FIRST_VARIANCE = 0.25
_TENFOLD = math.log(10.0)
# Suppositions that an upper bound is looked for among, as shares of the largest mean. They must not depend on the values.
LEVELS = np.concatenate([np.arange(0.0, 0.1, 0.0005), np.arange(0.1, 0.995, 0.01)])


class BoundMethod(enum.StrEnum):
    """How a mean is bounded."""

    BETTING = "betting"
    EMPIRICAL_BERNSTEIN = "empirical_bernstein"


@dataclass(frozen=True)
class MeanBound:
    """How a mean is bounded.

    Attributes:
        error_probability: in (0, 1), of the bound. Betting aims at it; its p-values hold at any level.
        spread: the largest absolute value that is possible.
        method: betting is much sharper where the values vary little.
        seed: of the order in which betting takes the values; other orders give slightly other results, all of them valid.
    """

    error_probability: float
    spread: float = 1.0
    method: BoundMethod = BoundMethod.BETTING
    seed: int = 0

    def p_values(self, values: np.ndarray, means: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns, for each supposed mean, a p-value [k] in (0, 1] of the supposition that the true mean is at least that.

        Args:
            values: [n] independent values in [-spread, spread], n at least 1.
            means: [k] in (-spread, spread).

        Raises:
            ValueError: there are no values, one of them is out of its range or no number, or a supposed mean is.
        """
        scaled = _scaled(values, self.spread)
        supposed = (np.asarray(means, dtype=np.float64) + self.spread) / (2.0 * self.spread)
        if not (np.all(supposed > 0.0) and np.all(supposed < 1.0)):
            raise ValueError(f"supposed means must lie inside (-{self.spread:g}, {self.spread:g})")
        if self.method is BoundMethod.EMPIRICAL_BERNSTEIN:
            return _bernstein(scaled, supposed)
        order = np.random.default_rng(self.seed).permutation(len(scaled))
        wealth = _best_log_wealth(scaled[order], supposed, self.error_probability)
        return np.asarray(np.exp(-wealth))

    def upper(self, values: np.ndarray, also: Sequence[float] = ()) -> float:
        """Returns a number, at least 0, below which the true mean lies with probability at least 1 - error_probability.

        It is one of fixed levels, 0.0005 * spread apart up to a tenth of the spread and 0.01 * spread above.

        Args:
            values: as for `p_values`.
            also: further levels in (0, spread); they must not be chosen by looking at the values.
        """
        levels = np.unique(np.concatenate([LEVELS * self.spread, np.asarray(also, dtype=np.float64)]))
        standing = np.flatnonzero(self.p_values(values, levels) > self.error_probability)
        # Every level above must be rejected too: then a bound below the true mean means that the largest level which is
        # not above that mean was rejected, and of that single level the test is valid.
        place = int(standing[-1]) + 1 if len(standing) else 0
        return float(levels[place]) if place < len(levels) else self.spread


def fewest_values(max_mean: float, error_probability: float, *, spread: float = 1.0) -> int:
    """Returns how many values betting needs, all of them 0, to show a mean below `max_mean` in (0, spread)."""
    share = max_mean / spread
    supposed = (1.0 + share) / 2.0
    surest = math.log(1.0 / error_probability) / math.log1p(MAX_STAKE * (supposed - 0.5) / (1.0 - supposed))
    # The first bets are smaller, until it shows that the values do not vary; what that costs was measured.
    return math.ceil(surest + 0.16 / share + 1.5)


def _scaled(values: np.ndarray, spread: float) -> np.ndarray:
    """To [0, 1]; means are averages of n values, so that the last digit may be off."""
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or not len(given) or not np.all(np.abs(given) <= spread * (1.0 + 1e-9)):
        raise ValueError(f"values must be numbers in [-{spread:g}, {spread:g}], and at least one")
    return np.clip((given + spread) / (2.0 * spread), 0.0, 1.0)


def _best_log_wealth(values: np.ndarray, means: np.ndarray, error_probability: float) -> np.ndarray:
    """The largest log wealth [k] of a gambler who bets, before each value, that it will be below the supposed mean.

    If the true mean is at least the supposed one the wealth is a nonnegative supermartingale that starts at 1, so that it
    ever reaches 1 / a with probability at most a (Ville), whatever the bets are. The bet is the one that would bring
    the wealth to its target with the values that are left, recomputed after each.

    Sources: Waudby-Smith and Ramdas, 2023, arXiv:2010.09686 (means by betting); Voracek and Orabona, 2025,
    arXiv:2505.22422 (targets recomputed, which is nearly as sharp as the normal approximation).

    Args:
        values: [n] in [0, 1].
        means: [k] in (0, 1).
        error_probability: the target is its inverse.
    """
    count, target = len(values), math.log(1.0 / error_probability)
    wealth, best = np.zeros(len(means)), np.zeros(len(means))
    largest_bet = MAX_STAKE / (1.0 - means)
    # Sums of what was seen before each value: a bet may not know what it is on.
    sums = np.concatenate([[0.0], np.cumsum(values)])
    squares = np.concatenate([[0.0], np.cumsum(np.square(values))])
    for seen, value in enumerate(values):
        # The supposed mean and the largest variance count as one value that was seen.
        center = (sums[seen] + means) / (seen + 1)
        deviations = squares[seen] - 2.0 * center * sums[seen] + seen * np.square(center)
        variance = np.maximum(FIRST_VARIANCE + deviations, 1e-12) / (seen + 1)
        # Once it is reached, ten times as much is aimed at, so that the p-value tells more than that it was.
        goal = np.where(best < target, target, target + _TENFOLD * (np.floor((best - target) / _TENFOLD) + 1.0))
        missing = np.maximum(goal - wealth, 0.0)
        bets = np.minimum(np.sqrt(2.0 * missing / (variance * (count - seen))), largest_bet)
        wealth = wealth + np.log1p(bets * (means - value))
        best = np.maximum(best, wealth)
    return best


def _bernstein(values: np.ndarray, means: np.ndarray) -> np.ndarray:
    """P-values [k] by inverting the empirical Bernstein bound in its error probability.

    Source: Maurer and Pontil, 2009, arXiv:0907.3740, theorem 4.
    """
    count = len(values)
    if count < 2:
        return np.ones(len(means))
    # mean + a s + b s^2 = supposed, where s^2 = log(2 / p).
    a = math.sqrt(2.0 * float(values.var(ddof=1)) / count)
    b = 7.0 / (3.0 * (count - 1))
    distance = np.maximum(means - values.mean(), 0.0)
    root = (np.sqrt(a * a + 4.0 * b * distance) - a) / (2.0 * b)
    return np.asarray(np.minimum(1.0, 2.0 * np.exp(-np.square(root))))
