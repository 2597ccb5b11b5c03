"""The test of a margin: its level, what more and less data do to it, and what it says where it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pruning_server.evaluation.harm import harm_p_value


def p_of(losses: np.ndarray, margin: float, *, is_binary: bool = True, units: np.ndarray | None = None) -> float:
    original = np.ones(len(losses))
    units = np.arange(len(losses)) if units is None else units
    return harm_p_value(original, original - losses, units, margin, is_binary=is_binary)


def harmed(samples: int, count: int) -> np.ndarray:
    losses = np.zeros(samples)
    losses[:count] = 1.0
    return losses


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(0, 40), st.floats(0.001, 0.5))
def test_right_and_wrong_is_the_binomial_test(samples: int, count: int, margin: float) -> None:
    count = min(count, samples)
    found = p_of(harmed(samples, count), margin)
    assert found == pytest.approx(stats.binom.cdf(count, samples, margin), rel=1e-9, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 100), st.integers(0, 20), st.floats(0.001, 0.5))
def test_less_data_never_says_more(samples: int, fewer: int, count: int, margin: float) -> None:
    """With the same losses among fewer samples, and with all data seen twice."""
    count = min(count, samples)
    assert p_of(harmed(samples + fewer, count), margin) <= p_of(harmed(samples, count), margin) + 1e-12
    once, twice = p_of(harmed(samples, 0), margin), p_of(harmed(2 * samples, 0), margin)
    assert twice <= once


def test_gains_do_not_pay_for_losses() -> None:
    losses = harmed(200, 8)
    with_gains = losses.copy()
    with_gains[100:150] = -1.0
    assert p_of(with_gains, 0.05) == p_of(losses, 0.05)


def test_the_level_holds_where_the_change_costs_just_the_margin() -> None:
    rng = np.random.default_rng(0)
    for margin, gains in ((0.02, 0.0), (0.05, 0.03), (0.1, 0.2)):
        draws = rng.random((4000, 150))
        losses = (draws < margin + gains).astype(float) - (draws > 1 - gains).astype(float)
        rejected = np.mean([p_of(one, margin) < 0.05 for one in losses])
        # 0.05 and three standard errors of 4,000 runs.
        assert rejected <= 0.05 + 3 * 0.0034


def test_the_level_of_the_t_test_and_its_power() -> None:
    rng = np.random.default_rng(1)
    at_margin = rng.normal(0.05, 0.2, size=(2000, 100))
    assert np.mean([p_of(one, 0.05, is_binary=False) < 0.05 for one in at_margin]) <= 0.05 + 3 * 0.0049
    harmless = rng.normal(0.0, 0.05, size=(200, 100))
    assert np.mean([p_of(one, 0.05, is_binary=False) < 0.05 for one in harmless]) > 0.95


def test_t_is_students() -> None:
    losses = np.random.default_rng(2).normal(0.04, 0.2, size=60)
    expected = stats.ttest_1samp(losses, 0.05, alternative="less").pvalue
    assert p_of(losses, 0.05, is_binary=False) == pytest.approx(expected, rel=1e-6)


def test_never_smaller_than_the_number_of_samples_allows() -> None:
    losses = np.full(40, 1e-9)
    losses[0] = 0.0
    assert p_of(losses, 0.05, is_binary=False) == pytest.approx(0.95**40, rel=1e-9)


def test_samples_that_belong_together_count_once() -> None:
    units = np.repeat(np.arange(20), 5)
    assert p_of(np.zeros(100), 0.1, units=units) == pytest.approx(0.9**20, rel=1e-9)


@pytest.mark.parametrize("losses", [np.zeros(0), np.full(50, np.nan)])
def test_nothing_known_rejects_nothing(losses: np.ndarray) -> None:
    assert p_of(losses, 0.1) == 1.0


def test_a_metric_without_bounds_needs_a_spread_and_thirty_samples() -> None:
    assert p_of(np.zeros(100), 0.1, is_binary=False) == 1.0
    assert p_of(np.random.default_rng(0).normal(0, 1e-6, 29), 0.1, is_binary=False) == 1.0


def test_a_margin_of_everything() -> None:
    assert p_of(harmed(10, 10), 1.0) == 1.0
    assert p_of(harmed(10, 9), 1.0) == 0.0
