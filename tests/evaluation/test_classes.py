"""Class by class: what an average hides is found first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from statsmodels.stats.multitest import multipletests

from pruning_server.evaluation.classes import holm, judge_classes
from pruning_server.evaluation.paired import mcnemar_exact
from pruning_server.evaluation.predictions import Predictions, read_predictions
from pruning_server.spec.report_accuracy import ClassDelta


def judged(predictions: Predictions, units: np.ndarray | None = None) -> tuple[ClassDelta, ...]:
    """At 95 %."""
    return judge_classes(predictions, confidence_level=0.95, seed=0, units=units)


@settings(max_examples=25, deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Digits, the scores of a classifier, and those of the same one without its last layer's row of one class."""
    inputs, targets = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=100, tol=1e-3).fit(inputs[:900] / 16, targets[:900])
    scores = model.decision_function(inputs[900:] / 16)
    model.coef_[7], model.intercept_[7] = 0, -1
    return targets[900:], scores, model.decision_function(inputs[900:] / 16), 7


def test_the_broken_class_of_a_real_classifier_is_first(
    digits: tuple[np.ndarray, np.ndarray, np.ndarray, int],
) -> None:
    targets, before, after, broken = digits
    rows = judged(read_predictions(targets, before.argmax(1), after.argmax(1)))
    assert rows[0].label == broken
    assert rows[0].is_significant
    assert rows[0].delta < -0.8
    assert not any(row.is_significant and row.delta < 0 for row in rows[1:])
    assert [row.original for row in sorted(rows, key=lambda row: row.label)] == pytest.approx(
        recall_score(targets, before.argmax(1), average=None)
    )
    for row in rows:
        of = targets == row.label
        lost = int(((before.argmax(1) == targets) & (after.argmax(1) != targets) & of).sum())
        gained = int(((before.argmax(1) != targets) & (after.argmax(1) == targets) & of).sum())
        assert (row.samples, row.predictions) == (of.sum(), of.sum())
        assert row.delta == pytest.approx((gained - lost) / of.sum())
        assert row.p_value == pytest.approx(mcnemar_exact(lost, gained))
        assert row.interval[0] <= row.delta <= row.interval[1]


def test_the_broken_class_is_first_in_groups_and_in_images(
    digits: tuple[np.ndarray, np.ndarray, np.ndarray, int],
) -> None:
    targets, before, after, broken = digits
    count = len(targets) // 12
    by_dozens = [values[: 12 * count].reshape(count, 12) for values in (targets, before.argmax(1), after.argmax(1))]
    images = judged(read_predictions(*by_dozens))
    grouped = judged(read_predictions(targets, before.argmax(1), after.argmax(1)), np.arange(len(targets)) // 12)
    for rows in (images, grouped):
        assert (rows[0].label, rows[0].is_significant) == (broken, True)
        assert "whole groups" in rows[0].interval_method
        assert sum(row.is_significant for row in rows) == 1
    assert images[0].samples < images[0].predictions


def test_a_rare_class_that_lost_its_only_sample_does_not_come_before_the_broken_one() -> None:
    target = np.array([0] * 60 + [1] * 60 + [2])
    pruned = np.array([0] * 60 + [0] * 40 + [1] * 20 + [0])
    rows = judged(read_predictions(target, target, pruned))
    assert [row.label for row in rows] == [1, 2, 0]
    assert [row.is_significant for row in rows] == [True, False, False]
    assert rows[1].delta == -1


@pytest.mark.parametrize("units", [None, np.arange(90) // 3])
def test_identical_models_differ_in_no_class(units: np.ndarray | None) -> None:
    target = np.random.default_rng(0).integers(5, size=90)
    chosen = np.random.default_rng(1).integers(5, size=90)
    for row in judged(read_predictions(target, chosen, chosen), units):
        assert (row.delta, row.p_value, row.p_corrected, row.is_significant) == (0, 1, 1, False)


def test_labels_are_judged_on_the_samples_that_have_them() -> None:
    rng = np.random.default_rng(2)
    target = (rng.random((200, 4)) < 0.3).astype(int)
    pruned = target.copy()
    pruned[:, 2] = 0
    rows = judged(read_predictions(target, target, pruned, of_labels=True))
    assert [row.label for row in rows] == [2, 0, 1, 3]
    assert (rows[0].delta, rows[0].samples) == (-1, target[:, 2].sum())


def test_elements_that_do_not_count_are_left_out() -> None:
    target = np.array([[0, 1, -100], [1, -100, -100], [-100, -100, -100]])
    found = read_predictions(target, np.zeros((3, 3)), np.ones((3, 3)))
    assert (found.count, len(found.target), found.one_each) == (3, 3, False)
    assert {row.label: row.predictions for row in judged(found)} == {0: 1, 1: 2}


def test_many_classes_keep_their_false_alarms_rare() -> None:
    """100 classes, none different: about one table in twenty or less may name one."""
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(40):
        target = rng.integers(100, size=2_500)
        before, after = (np.where(rng.random(2_500) < 0.8, target, 100) for _ in range(2))
        alarms += any(row.is_significant for row in judged(read_predictions(target, before, after)))
    assert alarms <= 5
