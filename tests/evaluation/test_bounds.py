"""Finite-sample bounds: they keep their level whatever the distribution, and are not wider than they need to be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from pruning_server.evaluation.bounds import BoundMethod, MeanBound, fewest_values

METHODS = list(BoundMethod)
LEVEL = 0.1
REPEATS = 200
# The number of sets that may miss at this level: the binomial 99.9 % point.
MOST_MISSED = int(stats.binom.ppf(0.999, REPEATS, LEVEL))


def trinomial(rng: np.random.Generator, lost: float, gained: float, count: int) -> np.ndarray:
    """Paired differences of two classifiers."""
    return rng.choice([1.0, -1.0, 0.0], size=count, p=[lost, gained, 1.0 - lost - gained])


DISTRIBUTIONS = {
    "some lost, some gained": (lambda rng, n: trinomial(rng, 0.06, 0.04, n), 0.02),
    "much lost, much gained": (lambda rng, n: trinomial(rng, 0.3, 0.25, n), 0.05),
    "a few lost": (lambda rng, n: trinomial(rng, 0.02, 0.0, n), 0.02),
    "only gained": (lambda rng, n: trinomial(rng, 0.01, 0.05, n), -0.04),
    "shares of a unit": (lambda rng, n: rng.beta(2.0, 5.0, size=n) - 0.25, 2.0 / 7.0 - 0.25),
    "the ends": (lambda rng, n: rng.choice([1.0, -1.0], size=n, p=[0.52, 0.48]), 0.04),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [30, 120])
def test_a_true_supposition_is_rejected_no_more_often_than_allowed(name: str, count: int, method: BoundMethod) -> None:
    draw, mean = DISTRIBUTIONS[name]
    rng = np.random.default_rng(7)
    missed = sum(
        MeanBound(LEVEL, method=method, seed=seed).p_values(draw(rng, count), [mean])[0] <= LEVEL
        for seed in range(REPEATS)
    )
    assert missed <= MOST_MISSED


@pytest.mark.parametrize("count", [40, 150])
def test_the_upper_bound_covers_the_mean(count: int) -> None:
    rng = np.random.default_rng(3)
    bounds = [MeanBound(LEVEL, seed=seed).upper(trinomial(rng, 0.06, 0.03, count)) for seed in range(100)]
    assert sum(bound < 0.03 for bound in bounds) <= stats.binom.ppf(0.999, 100, LEVEL)


@pytest.mark.parametrize("method", METHODS)
def test_small_ps_are_rarer_the_smaller_they_are(method: BoundMethod) -> None:
    """A p-value holds at any level, not only at the one that betting aims at."""
    rng = np.random.default_rng(11)
    ps = np.array(
        [
            MeanBound(LEVEL, method=method, seed=seed).p_values(trinomial(rng, 0.06, 0.04, 120), [0.02])[0]
            for seed in range(REPEATS)
        ]
    )
    for level in (0.02, 0.05, 0.2, 0.5):
        assert (ps <= level).sum() <= stats.binom.ppf(0.999, REPEATS, level)


@pytest.mark.parametrize("method", METHODS)
def test_more_values_never_widen_the_bound_by_much(method: BoundMethod) -> None:
    rng = np.random.default_rng(5)
    values = trinomial(rng, 0.04, 0.03, 4000)
    bounds = [MeanBound(LEVEL, method=method).upper(np.tile(values[:250], times)) for times in (1, 2, 4, 8, 16)]
    assert all(later <= earlier + 0.0005 for earlier, later in pairwise(bounds))
    assert bounds[-1] < bounds[0]
    assert bounds[-1] >= values[:250].mean()


def test_betting_is_nearly_as_sharp_as_the_normal_approximation_and_sharper_than_bernstein() -> None:
    rng = np.random.default_rng(2)
    excess = dict.fromkeys(METHODS, 0.0)
    for seed in range(8):
        values = trinomial(rng, 0.05, 0.04, 1500)
        normal = values.mean() + stats.norm.ppf(1 - LEVEL) * values.std() / np.sqrt(len(values))
        for method in METHODS:
            excess[method] += (MeanBound(LEVEL, method=method, seed=seed).upper(values) - normal) / 8
    assert 0.0 < excess[BoundMethod.BETTING] < 0.003
    assert excess[BoundMethod.EMPIRICAL_BERNSTEIN] > 3 * excess[BoundMethod.BETTING]


@pytest.mark.parametrize("method", METHODS)
def test_larger_means_are_rejected_sooner(method: BoundMethod) -> None:
    values = trinomial(np.random.default_rng(1), 0.04, 0.03, 500)
    ps = MeanBound(LEVEL, method=method).p_values(values, [0.02, 0.05, 0.1, 0.3])
    assert np.all(np.diff(ps) <= 1e-12)
    assert np.all((ps > 0) & (ps <= 1))


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_does_not_matter(method: BoundMethod) -> None:
    values = trinomial(np.random.default_rng(1), 0.04, 0.03, 400)
    one = MeanBound(LEVEL, method=method).p_values(values, [0.04, 0.08])
    two = MeanBound(LEVEL, method=method, spread=2.0).p_values(2 * values, [0.08, 0.16])
    np.testing.assert_allclose(one, two, rtol=1e-9)


def test_the_order_is_the_seeds() -> None:
    values = np.sort(trinomial(np.random.default_rng(1), 0.05, 0.03, 400))
    same = [MeanBound(LEVEL, seed=4).p_values(values, [0.05])[0] for _ in range(2)]
    assert same[0] == same[1]
    assert MeanBound(LEVEL, seed=5).p_values(values, [0.05])[0] != same[0]


@pytest.mark.parametrize("max_mean", [0.3, 0.05, 0.02, 0.005])
@pytest.mark.parametrize("error_probability", [0.3, 0.1, 0.01])
def test_the_fewest_values_suffice_and_many_fewer_do_not(max_mean: float, error_probability: float) -> None:
    count = fewest_values(max_mean, error_probability)
    bound = MeanBound(error_probability)
    assert bound.p_values(np.zeros(count), [max_mean])[0] <= error_probability
    assert bound.p_values(np.zeros(int(0.8 * count) - 1), [max_mean])[0] > error_probability


def test_the_bound_falls_on_a_level_that_was_asked_for() -> None:
    """So that being certified and having a bound within what is accepted are one and the same."""
    bernstein = MeanBound(LEVEL, method=BoundMethod.EMPIRICAL_BERNSTEIN)
    zeros = np.zeros(1000)
    exact = 14 * np.log(2 / LEVEL) / (3 * 999)
    assert bernstein.upper(zeros, also=(exact + 1e-7,)) == exact + 1e-7
    assert exact + 1e-6 < bernstein.upper(zeros, also=(exact - 1e-7,)) <= exact + 0.0005


@pytest.mark.parametrize("values", [[], [1.5], [np.nan], [[0.0]]])
def test_values_out_of_range_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be numbers"):
        MeanBound(LEVEL).p_values(np.asarray(values), [0.1])


@pytest.mark.parametrize("mean", [1.0, -1.0, np.nan])
def test_suppositions_out_of_range_are_refused(mean: float) -> None:
    with pytest.raises(ValueError, match="supposed means"):
        MeanBound(LEVEL).p_values(np.zeros(3), [mean])


def test_a_mean_at_the_top_is_bounded_by_the_top() -> None:
    assert MeanBound(LEVEL).upper(np.ones(50)) == 1.0
    assert MeanBound(LEVEL, spread=2.0).upper(np.full(50, 2.0)) == 2.0
