"""Metrics of whole sets, against scikit-learn; their intervals against the plain mean's and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from pruning_server.evaluation import set_metrics
from pruning_server.evaluation.functionals import Functional, Tally, judge_functionals
from pruning_server.evaluation.paired import mean_interval

LEVEL = 0.95


def value(functional: Functional, tally: Tally) -> float:
    return float(functional.value(tally.sums()))


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), elements=st.sampled_from([1, 7]))
def test_metrics_of_classes_are_those_of_scikit_learn(seed: int, classes: int, elements: int) -> None:
    rng = np.random.default_rng(seed)
    truth, chosen = rng.integers(classes, size=(20, elements)), rng.integers(classes, size=(20, elements))
    truth[rng.random(truth.shape) < 0.2] = -100
    counted = truth != -100
    if not counted.any():
        return
    a, b = truth[counted], chosen[counted]
    tally = set_metrics.tally_classes(chosen, truth, classes)
    assert value(set_metrics.MACRO_F1, tally) == pytest.approx(reference.f1_score(a, b, average="macro"), abs=1e-12)
    assert value(set_metrics.MEAN_IOU, tally) == pytest.approx(
        reference.jaccard_score(a, b, average="macro"), abs=1e-12
    )
    assert value(set_metrics.pooled_accuracy("x"), tally) == pytest.approx(reference.accuracy_score(a, b), abs=1e-12)
    recalls = [np.mean(b[a == label] == label) for label in np.unique(a)]
    assert value(set_metrics.BALANCED_ACCURACY, tally) == pytest.approx(np.mean(recalls), abs=1e-12)
    if set(np.unique(a)) == {0, 1} and classes == 2:
        assert value(set_metrics.F1, tally) == pytest.approx(reference.f1_score(a, b), abs=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), labels=st.integers(2, 6))
def test_metrics_of_labels_are_those_of_scikit_learn(seed: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    truth, chosen = rng.integers(2, size=(15, labels)), rng.integers(2, size=(15, labels))
    truth[0, 0] = 1
    tally = set_metrics.tally_labels(chosen > 0, truth)
    macro = reference.f1_score(truth, chosen, average="macro", zero_division=np.nan)
    micro = reference.f1_score(truth, chosen, average="micro")
    assert value(set_metrics.LABELS_MACRO_F1, tally) == pytest.approx(macro, abs=1e-12)
    assert value(set_metrics.LABELS_MICRO_F1, tally) == pytest.approx(micro, abs=1e-12)
    wanted = 1 - reference.hamming_loss(truth, chosen)
    assert value(set_metrics.LABEL_ACCURACY, tally) == pytest.approx(wanted, abs=1e-12)


def test_errors_and_perplexity() -> None:
    rng = np.random.default_rng(0)
    outputs, wanted = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    errors = set_metrics.tally_errors(outputs, wanted)
    assert value(set_metrics.RMSE, errors) == pytest.approx(
        reference.root_mean_squared_error(wanted.ravel(), outputs.ravel())
    )
    assert value(set_metrics.MAE, errors) == pytest.approx(reference.mean_absolute_error(wanted, outputs))
    totals, counts = rng.exponential(size=30) * 5, rng.integers(1, 9, size=30).astype(float)
    perplexity = value(set_metrics.PERPLEXITY, set_metrics.tally_means(totals, counts))
    # Tokens weigh alike, not documents.
    assert perplexity == pytest.approx(np.exp(totals.sum() / counts.sum()))


def test_a_mean_has_the_interval_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    before = rng.random(200)
    after = before + rng.normal(scale=0.2, size=200)
    tallies = set_metrics.tally_means(before), set_metrics.tally_means(after)
    (found,) = judge_functionals([set_metrics.mean_of("m", is_bounded=False)], *tallies, confidence_level=LEVEL, seed=0)
    wanted = mean_interval(after - before, confidence_level=LEVEL, seed=0)
    assert found.delta == pytest.approx(np.mean(after - before), abs=1e-12)
    assert found.interval == pytest.approx((wanted.low, wanted.high), abs=0.003)
    assert found.interval_method == "bootstrap bca"


def test_groups_are_resampled_whole() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(40), 10)
    before = np.zeros(400)
    after = np.repeat(rng.normal(size=40), 10)
    tallies = set_metrics.tally_means(before), set_metrics.tally_means(after)
    metric = [set_metrics.mean_of("m", is_bounded=False)]
    (alone,) = judge_functionals(metric, *tallies, confidence_level=LEVEL, seed=0)
    (whole,) = judge_functionals(metric, *tallies, confidence_level=LEVEL, seed=0, units=groups)
    widths = [one.interval[1] - one.interval[0] for one in (alone, whole) if one.interval]
    # Ten copies of a number say no more than the number.
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(10), rel=0.1)
    assert whole.interval_method == "bootstrap bca, whole groups"


@pytest.mark.parametrize("units", [None, np.arange(60) // 3])
def test_identical_models_differ_by_nothing(units: np.ndarray | None) -> None:
    rng = np.random.default_rng(3)
    chosen, truth = rng.integers(4, size=(60, 1)), rng.integers(4, size=(60, 1))
    tally = set_metrics.tally_classes(chosen, truth, 4)
    for found in judge_functionals(
        [set_metrics.MACRO_F1, set_metrics.MEAN_IOU], tally, tally, confidence_level=LEVEL, seed=0, units=units
    ):
        assert found.delta == 0.0
        assert found.interval is not None
        low, high = found.interval
        # What was not seen is bounded by the number of samples, not by 0.
        assert low < 0 < high
        assert high < 0.2


def test_metrics_without_bounds_have_a_point_where_nothing_changes() -> None:
    tally = set_metrics.tally_means(np.ones(40), np.full(40, 3.0))
    (found,) = judge_functionals([set_metrics.PERPLEXITY], tally, tally, confidence_level=LEVEL, seed=0)
    assert (found.delta, found.interval, found.interval_method) == (0.0, (0.0, 0.0), "no spread")


@pytest.mark.parametrize("samples", [1, 2, 5, 29])
def test_few_samples_get_an_interval_all_the_same(samples: int) -> None:
    rng = np.random.default_rng(4)
    chosen, other, truth = (rng.integers(3, size=(samples, 4)) for _ in range(3))
    tallies = set_metrics.tally_classes(chosen, truth, 3), set_metrics.tally_classes(other, truth, 3)
    (found,) = judge_functionals([set_metrics.MEAN_IOU], *tallies, confidence_level=LEVEL, seed=0)
    assert found.interval is not None
    assert found.delta is not None
    assert -1 <= found.interval[0] <= found.delta <= found.interval[1] <= 1


def test_what_is_not_defined_is_none() -> None:
    nothing = set_metrics.tally_classes(np.zeros((5, 2), int), np.full((5, 2), -100), 3)
    (found,) = judge_functionals([set_metrics.MEAN_IOU], nothing, nothing, confidence_level=LEVEL, seed=0)
    assert (found.original, found.pruned, found.delta, found.interval) == (None, None, None, None)
    exploded = set_metrics.tally_means(np.full(5, 1e6), np.ones(5))
    fine = set_metrics.tally_means(np.ones(5), np.ones(5))
    (found,) = judge_functionals([set_metrics.PERPLEXITY], fine, exploded, confidence_level=LEVEL, seed=0)
    assert (found.original, found.pruned, found.delta) == (pytest.approx(np.e), None, None)


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(5)
    tallies = [
        set_metrics.tally_classes(rng.integers(3, size=(50, 1)), np.arange(50)[:, None] % 3, 3) for _ in range(2)
    ]
    first, again, other = (
        judge_functionals([set_metrics.MACRO_F1], *tallies, confidence_level=LEVEL, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_intervals_of_macro_f1_cover_what_they_promise() -> None:
    """60 sets of 80 samples from a population whose difference is known by a large draw: 95 % with a standard error of 3 %."""
    rng = np.random.default_rng(6)

    def draw(count: int) -> tuple[Tally, Tally]:
        truth = rng.choice(3, p=[0.6, 0.3, 0.1], size=(count, 1))
        first = np.where(rng.random((count, 1)) < 0.85, truth, rng.integers(3, size=(count, 1)))
        second = np.where(rng.random((count, 1)) < 0.9, first, rng.integers(3, size=(count, 1)))
        return set_metrics.tally_classes(first, truth, 3), set_metrics.tally_classes(second, truth, 3)

    large = draw(400_000)
    wanted = value(set_metrics.MACRO_F1, large[1]) - value(set_metrics.MACRO_F1, large[0])
    hits = 0
    for seed in range(60):
        (found,) = judge_functionals([set_metrics.MACRO_F1], *draw(80), confidence_level=LEVEL, seed=seed)
        assert found.interval is not None
        hits += found.interval[0] <= wanted <= found.interval[1]
    assert hits / 60 >= 0.86
