"""Paired statistics against references, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from pruning_server.evaluation.paired import (
    compare,
    interval_between_sets,
    mcnemar_exact,
    mean_difference,
    mean_interval,
    smallest_detectable_loss,
    tango_interval,
)
from pruning_server.evaluation.proportions import Interval, PairedProportions
from pruning_server.evaluation.student import chi_squared_quantile, t_cdf, t_quantile

counts = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 200))


def score_by_optimization(gained: int, lost: int, samples: int, difference: float) -> float:
    """Tango's statistic with the constrained maximum of the likelihood found numerically."""

    def negative_log_likelihood(lost_probability: float) -> float:
        probabilities = [lost_probability + difference, lost_probability, 1 - 2 * lost_probability - difference]
        observed = [gained, lost, samples - gained - lost]
        return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(observed, probabilities, strict=True) if n)

    low, high = max(0.0, -difference), (1 - difference) / 2
    best = optimize.minimize_scalar(
        negative_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    )
    variance = samples * (2 * best.x + difference * (1 - difference))
    return (gained - lost - samples * difference) / math.sqrt(variance)


@settings(max_examples=60, deadline=None)
@given(counts=counts, level=st.sampled_from([0.8, 0.95, 0.99]))
def test_tangos_ends_are_where_the_score_is_critical(counts: tuple[int, int, int], level: float) -> None:
    gained, lost, both = counts
    samples = gained + lost + both
    interval = tango_interval(lost, gained, samples, level)
    estimate = (gained - lost) / samples
    assert -1 <= interval.low <= estimate <= interval.high <= 1
    critical = stats.norm.ppf(0.5 + level / 2)
    for end, wanted in ((interval.low, critical), (interval.high, -critical)):
        assert score_by_optimization(gained, lost, samples, end) == pytest.approx(wanted, abs=2e-3)


@settings(max_examples=100, deadline=None)
@given(counts=counts)
def test_swapping_the_models_mirrors_the_interval(counts: tuple[int, int, int]) -> None:
    gained, lost, both = counts
    one = tango_interval(lost, gained, gained + lost + both, 0.95)
    other = tango_interval(gained, lost, gained + lost + both, 0.95)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=1e-9)


def test_tango_without_discordant_pairs_has_the_known_closed_form() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    for samples in (1, 10, 250, 10_000):
        interval = tango_interval(0, 0, samples, 0.95)
        wanted = z2 / (samples + z2)
        assert (interval.low, interval.high) == pytest.approx((-wanted, wanted), abs=1e-9)


def test_tango_at_the_edges() -> None:
    assert tango_interval(10, 0, 10, 0.95).low == pytest.approx(-1, abs=1e-9)
    assert tango_interval(0, 10, 10, 0.95).high == pytest.approx(1, abs=1e-9)
    for wrong in ((-1, 0, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="discordant"):
            tango_interval(*wrong, 0.95)


@settings(max_examples=150, deadline=None)
@given(lost=st.integers(0, 300), gained=st.integers(0, 300))
def test_mcnemar_is_that_of_statsmodels(lost: int, gained: int) -> None:
    wanted = min(1.0, mcnemar([[7, lost], [gained, 9]], exact=True).pvalue)
    assert mcnemar_exact(lost, gained) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


def test_mcnemar_of_many_pairs() -> None:
    assert mcnemar_exact(49_000, 51_000) == pytest.approx(stats.binomtest(49_000, 100_000).pvalue, rel=1e-6)


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 28, 999, 200_000])
@pytest.mark.parametrize("probability", [0.025, 0.75, 0.975, 0.9999])
def test_the_quantiles_of_student(degrees: int, probability: float) -> None:
    wanted = stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(wanted, rel=1e-7)
    assert t_cdf(wanted, degrees) == pytest.approx(probability, rel=1e-8)


@pytest.mark.parametrize("half_degrees", [1, 2, 5])
def test_the_quantiles_of_chi_squared(half_degrees: int) -> None:
    for probability in (0.05, 0.5, 0.975):
        wanted = stats.chi2.ppf(probability, 2 * half_degrees)
        assert chi_squared_quantile(probability, half_degrees) == pytest.approx(wanted, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(counts=counts, margin=st.floats(0.001, 0.9), level=st.sampled_from([0.8, 0.95]))
def test_the_score_test_and_the_interval_agree(counts: tuple[int, int, int], margin: float, level: float) -> None:
    gained, lost, both = counts
    pairs = PairedProportions(lost, gained, gained + lost + both)
    low = pairs.interval(level).low
    if abs(low + margin) > 1e-9:
        assert (pairs.p_at_most(-margin) < (1 - level) / 2) == (low > -margin)


def test_few_discordant_pairs_get_a_quarter_of_a_pair_more() -> None:
    assert PairedProportions(0, 0, 250).interval(0.95).high == tango_interval(0, 0, 250, 0.95).high
    few, many = PairedProportions(7, 2, 250), PairedProportions(15, 5, 250)
    plain = tango_interval(7, 2, 250, 0.95)
    corrected = few.interval(0.95)
    assert plain.low - 0.5 / 250 < corrected.low < plain.low
    assert plain.high < corrected.high < plain.high + 0.5 / 250
    assert (few.method, many.method) == ("tango, continuity corrected", "tango")
    assert many.interval(0.95) == tango_interval(15, 5, 250, 0.95)


def test_the_bootstrap_is_the_studentized_one() -> None:
    """Against its definition; both ends vary by about 0.002 with the seed."""
    values = np.random.default_rng(1).exponential(size=150) - 0.9
    drawn = np.random.default_rng(2).choice(values, size=(10_000, len(values)))
    ratios = (drawn.mean(axis=1) - values.mean()) / stats.sem(drawn, axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    wanted = (values.mean() - high * stats.sem(values), values.mean() - low * stats.sem(values))
    student = stats.t.interval(0.95, 149, values.mean(), stats.sem(values))
    ours = mean_interval(values, confidence_level=0.95, seed=0)
    assert ours.high == pytest.approx(wanted[1], abs=0.008)
    # Values that are skewed to the right need no longer reach to the left than Student's.
    assert wanted[0] > student[0]
    assert ours.low == pytest.approx(student[0], abs=1e-9)
    assert ours.method == "bootstrap-t"


def test_two_units_get_students_interval() -> None:
    values = np.random.default_rng(3).normal(size=4)
    ours = mean_interval(values, confidence_level=0.9, seed=0, is_bounded=False)
    wanted = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(wanted, rel=1e-9)
    assert ours.method == "student t"


@pytest.mark.parametrize("kind", ["normal", "skewed", "few", "groups", "pair"])
def test_the_test_and_the_interval_of_a_mean_agree(kind: str) -> None:
    rng = np.random.default_rng(4)
    values = {
        "normal": rng.normal(0.1, 0.2, 200),
        "skewed": -rng.exponential(0.1, 200),
        "few": np.concatenate([np.zeros(97), [-0.5, -0.25, 0.125]]),
        "groups": np.repeat(rng.normal(0, 0.1, 40), 5),
        "pair": np.array([0.1, 0.3]),
    }[kind]
    units = np.arange(200) // 5 if kind == "groups" else None
    found = mean_difference(values, seed=0, units=units, is_bounded=kind != "pair")
    for level in (0.8, 0.95):
        low = found.interval(level).low
        for shift, above in ((1e-4, False), (-1e-4, True)):
            p = found.p_at_most(low + shift)
            assert p is not None
            # The resamples are countable: the p-value may be off by two of them.
            assert (p < (1 - level) / 2 + 6e-4) if above else (p > (1 - level) / 2 - 6e-4)
    mirrored = mean_difference(-values, seed=0, units=units, is_bounded=kind != "pair")
    assert found.p_equal() == pytest.approx(mirrored.p_equal(), abs=0.02)
    assert 0 < found.p_equal() <= 1


def test_the_test_of_no_difference_is_students_where_differences_are_normal() -> None:
    for shift in (0.0, 0.15, 0.4):
        values = np.random.default_rng(5).normal(shift, 1, size=120)
        wanted = stats.ttest_1samp(values, 0).pvalue
        assert mean_difference(values, seed=0).p_equal() == pytest.approx(wanted, rel=0.35, abs=2e-3)
    assert mean_difference(np.zeros(50), seed=0).p_equal() == 1
    assert mean_difference(np.full(10, -1.0), seed=0).p_equal() == pytest.approx(stats.binomtest(0, 10).pvalue)


def test_differences_of_shares_stay_in_their_range() -> None:
    values = np.concatenate([np.zeros(1), np.full(9, -1.0)])
    assert mean_interval(values, confidence_level=0.99, seed=0).low >= -1
    errors = np.concatenate([np.zeros(3), np.full(9, -30.0)])
    assert mean_interval(errors, confidence_level=0.99, seed=0).low < -30


def test_bounds_are_taken_only_where_values_have_them() -> None:
    r2 = compare(np.full(40, 0.9), np.linspace(-3, 0.9, 40), is_binary=False, seed=0)
    shares = compare(np.ones(40), np.linspace(0.5, 1, 40), is_binary=False, seed=0)
    assert isinstance(compare(np.ones(4), np.zeros(4), is_binary=True, seed=0), PairedProportions)
    assert (r2.is_bounded, shares.is_bounded) == (False, True)  # type: ignore[union-attr]


def test_the_interval_between_sets_is_newcombes_for_proportions() -> None:
    """MOVER with Wilson's intervals of two independent proportions is Newcombe's interval."""
    ours = []
    for hits, count in ((30, 50), (12, 40)):
        low, high = proportion_confint(hits, count, method="wilson")
        ours.append((hits / count, Interval(low, high, "wilson")))
    wanted = confint_proportions_2indep(30, 50, 12, 40, method="newcomb")
    assert interval_between_sets(*ours) == pytest.approx(wanted, rel=1e-9)


def test_whole_groups_widen_the_interval_as_their_correlation_demands() -> None:
    rng = np.random.default_rng(4)
    units = np.repeat(np.arange(60), 10)
    values = np.repeat(rng.normal(size=60), 10)  # nothing new inside a group
    grouped = mean_interval(values, confidence_level=0.95, seed=0, units=units)
    alone = mean_interval(values, confidence_level=0.95, seed=0)
    sixty = mean_interval(values[::10], confidence_level=0.95, seed=0)
    assert grouped.high - grouped.low == pytest.approx(sixty.high - sixty.low, rel=0.02)
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.1)
    assert "whole groups" in grouped.method


def test_the_numbers_of_the_units_do_not_matter() -> None:
    values = np.random.default_rng(5).normal(size=80)
    units = np.arange(80) // 2
    one = mean_interval(values, confidence_level=0.95, seed=0, units=units)
    other = mean_interval(values, confidence_level=0.95, seed=0, units=units * 1_000_000 - 7)
    assert one == other


@pytest.mark.parametrize("units", [None, np.zeros(50, dtype=np.int64)])
def test_no_spread_is_not_certainty(units: np.ndarray | None) -> None:
    interval = mean_interval(np.zeros(50), confidence_level=0.95, seed=0, units=units)
    independent = 50 if units is None else 1
    wanted = tango_interval(0, 0, independent, 0.95)
    assert (interval.low, interval.high) == (wanted.low, wanted.high)
    point = mean_interval(np.full(50, 0.25), confidence_level=0.95, seed=0, is_bounded=False)
    assert (point.low, point.high) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [np.inf, 0.0]])
def test_differences_must_be_numbers(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(np.array(values), confidence_level=0.95, seed=0)


@pytest.mark.parametrize("samples", [40, 250])
@pytest.mark.parametrize("rates", [(0.02, 0.01), (0.1, 0.03)])
def test_tango_covers_the_truth_as_often_as_it_says(samples: int, rates: tuple[float, float]) -> None:
    rng = np.random.default_rng(6)
    lost_rate, gained_rate = rates
    draws = rng.multinomial(samples, [lost_rate, gained_rate, 1 - lost_rate - gained_rate], size=600)
    truth = gained_rate - lost_rate
    intervals = [tango_interval(int(lost), int(gained), samples, 0.95) for lost, gained, _ in draws]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    # 600 draws of 0.95 have a standard deviation of 0.009; score intervals of few pairs may be somewhat too wide.
    assert 0.92 <= covered <= 1.0


@pytest.mark.parametrize("size", [15, 100])
def test_mean_intervals_cover_the_truth_as_often_as_they_say(size: int) -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        values = rng.normal(size=size) + 0.3 * rng.exponential(size=size) - 0.3
        interval = mean_interval(values, confidence_level=0.9, seed=0, resamples=600)
        hits += interval.low <= 0.0 <= interval.high
    assert 0.85 <= hits / 300 <= 0.95  # standard deviation 0.017


def test_the_smallest_detectable_loss_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(8)
    spread, samples = 0.3, 400
    seen = rng.normal(scale=spread, size=samples)
    loss = smallest_detectable_loss(seen, 0.95)
    found = 0
    for _ in range(600):
        values = rng.normal(-loss, spread, size=samples)
        found += values.mean() + 1.96 * values.std(ddof=1) / math.sqrt(samples) < 0
    assert found / 600 == pytest.approx(0.8, abs=0.06)


def test_the_smallest_detectable_loss_shrinks_with_the_set_and_is_never_nothing() -> None:
    assert smallest_detectable_loss(np.zeros(100), 0.95) == pytest.approx(2.8 / 100, rel=0.01)
    assert smallest_detectable_loss(np.zeros(10_000), 0.95) < smallest_detectable_loss(np.zeros(100), 0.95)
    assert smallest_detectable_loss(np.zeros(100), 0.95, np.zeros(100)) == math.inf
