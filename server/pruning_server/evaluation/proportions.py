"""Two models' shares of right answers on the same samples: score interval, score test, McNemar's test.

Differences are pruned - original; a negative one is a loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pruning_server.evaluation.student import bisect

# Below so many discordant pairs the score interval of a lopsided difference covers less than it says (down to 93.0 % of
# 95 %, by enumeration); a quarter of a pair makes up for it: `docs/statistics.md`.
FEW_PAIRS = 20
FEW_PAIRS_CONTINUITY = 0.25


@dataclass(frozen=True)
class Interval:
    """A confidence interval and the name of its method."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class PairedProportions:
    """The difference of two proportions of the same independent samples, by its discordant pairs.

    Attributes:
        right_to_wrong: samples that only the original has right, at least 0.
        wrong_to_right: samples that only the pruned model has right, at least 0.
        samples: all of them, at least 1.
    """

    right_to_wrong: int
    wrong_to_right: int
    samples: int

    @property
    def estimate(self) -> float:
        """Pruned - original."""
        return (self.wrong_to_right - self.right_to_wrong) / self.samples

    @property
    def continuity(self) -> float:
        """Pairs by which the distance from a supposed difference is lessened."""
        return FEW_PAIRS_CONTINUITY if 0 < self.right_to_wrong + self.wrong_to_right < FEW_PAIRS else 0.0

    @property
    def method(self) -> str:
        """Of the interval and of `p_at_most`."""
        return "tango, continuity corrected" if self.continuity else "tango"

    def interval(self, confidence_level: float) -> Interval:
        """Tango's score interval, with a small correction for continuity where few pairs are discordant."""
        found = tango_interval(
            self.right_to_wrong, self.wrong_to_right, self.samples, confidence_level, continuity=self.continuity
        )
        return Interval(found.low, found.high, self.method)

    def p_at_most(self, difference: float) -> float:
        """One-sided p-value of the score test against a true difference of at most `difference`.

        Below (1 - confidence level) / 2 where, and only where, the interval lies above `difference`.
        """
        counts = (self.right_to_wrong, self.wrong_to_right, self.samples)
        return tango_p_at_most(*counts, difference, continuity=self.continuity)

    def p_equal(self) -> float:
        """McNemar's exact two-sided p-value."""
        return mcnemar_exact(self.right_to_wrong, self.wrong_to_right)


def tango_interval(
    right_to_wrong: int, wrong_to_right: int, samples: int, confidence_level: float, *, continuity: float = 0.0
) -> Interval:
    """Score interval of the difference of two paired proportions, (wrong_to_right - right_to_wrong) / samples.

    Keeps its level for few and for no discordant pairs, where Wald's interval has no width.
    Source: Tango, 1998, Statistics in Medicine 17:891-908.

    Args:
        right_to_wrong: samples that only the original has right, at least 0.
        wrong_to_right: samples that only the pruned model has right, at least 0.
        samples: all of them, at least 1.
        confidence_level: in (0, 1).
        continuity: pairs by which the distance from a supposed difference is lessened, at least 0.

    Raises:
        ValueError: the counts do not fit together.
    """
    if samples < 1 or min(right_to_wrong, wrong_to_right) < 0 or right_to_wrong + wrong_to_right > samples:
        raise ValueError(f"{right_to_wrong} and {wrong_to_right} are not discordant pairs of {samples} samples")
    z = NormalDist().inv_cdf(0.5 + confidence_level / 2)
    estimate = (wrong_to_right - right_to_wrong) / samples

    def score(difference: float) -> float:
        return _tango_score(wrong_to_right, right_to_wrong, samples, difference, continuity)

    low = bisect(lambda d: score(d) > z, -1.0, estimate)
    high = bisect(lambda d: score(d) >= -z, estimate, 1.0)
    return Interval(low, high, "tango")


def tango_p_at_most(
    right_to_wrong: int, wrong_to_right: int, samples: int, difference: float, *, continuity: float = 0.0
) -> float:
    """One-sided p-value of Tango's score test against a true difference of at most `difference`; args as above."""
    supposed = min(max(difference, -1.0), 1.0)
    score = _tango_score(wrong_to_right, right_to_wrong, samples, supposed, continuity)
    return NormalDist().cdf(-score) if math.isfinite(score) else float(score < 0)


def _tango_score(gained: int, lost: int, samples: int, difference: float, continuity: float) -> float:
    """Standardized distance of the estimate from a supposed difference; falls as the difference grows."""
    a = 2.0 * samples
    b = -gained - lost + (2.0 * samples - gained + lost) * difference
    c = -lost * difference * (1.0 - difference)
    # The smaller discordant probability under the supposed difference, by maximum likelihood.
    lost_probability = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = samples * (2.0 * lost_probability + difference * (1.0 - difference))
    raw = gained - lost - samples * difference
    distance = math.copysign(max(abs(raw) - continuity, 0.0), raw)
    if variance <= 0.0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


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
