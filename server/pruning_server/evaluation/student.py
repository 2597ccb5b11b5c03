"""Student's t and the chi-squared distribution, for any number of degrees of freedom."""

from __future__ import annotations

import math
from collections.abc import Callable

_BISECTION_STEPS = 200
_LARGEST_QUANTILE = 1e4
_FRACTION_STEPS = 10_000
_PRECISION = 1e-15
_SMALLEST = 1e-300


def bisect(lies_left: Callable[[float], bool], low: float, high: float) -> float:
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


def t_cdf(t: float, degrees: float) -> float:
    """Distribution function of Student's t with `degrees` > 0 degrees of freedom.

    Source: Abramowitz and Stegun, 1964, 26.7.1, by the incomplete beta function.
    """
    if math.isinf(t):
        return float(t > 0)
    tail = 0.5 * _incomplete_beta(degrees / 2.0, 0.5, degrees / (degrees + t * t))
    return 1.0 - tail if t > 0 else tail


def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t; `probability` in (0, 1)."""
    if probability < 0.5:
        return -t_quantile(1.0 - probability, degrees)
    return bisect(lambda t: t_cdf(t, degrees) < probability, 0.0, _LARGEST_QUANTILE)


def chi_squared_quantile(probability: float, half_degrees: int) -> float:
    """Quantile of chi-squared with 2 * `half_degrees` degrees of freedom, from its tie to Poisson's distribution."""

    def tail(x: float) -> float:
        term, total = math.exp(-x / 2.0), 0.0
        for k in range(half_degrees):
            total += term
            term *= x / 2.0 / (k + 1)
        return total

    return bisect(lambda x: 1.0 - tail(x) < probability, 0.0, 4.0 * half_degrees + 200.0)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function of x in [0, 1]."""
    if x <= 0.0 or x >= 1.0:
        return float(x > 0.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # The fraction converges quickly on this side of the mean only.
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, 1.0 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Abramowitz and Stegun, 1964, 26.5.8, by Lentz's method (1976, Applied Optics 15:668)."""
    upper, lower = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1.0))
    value = lower
    for m in range(1, _FRACTION_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            lower = 1.0 / _not_zero(1.0 + numerator * lower)
            upper = _not_zero(1.0 + numerator / upper)
            value *= lower * upper
        if abs(lower * upper - 1.0) < _PRECISION:
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _SMALLEST else _SMALLEST
