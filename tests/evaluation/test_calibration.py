"""Calibration against scikit-learn and against definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import brier_score_loss, log_loss

from pruning_server.evaluation.calibration import (
    Confidences,
    expected_calibration_error,
    judge_calibration,
    reliability,
)
from pruning_server.spec.report_accuracy import CalibrationSection


def scores(classes: int, sharpness: float, count: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [count, classes] of labels that are drawn from them at sharpness 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    honest = np.exp(log_softmax(logits, axis=1))
    target = (honest.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    return log_softmax(sharpness * logits, axis=1), target


def judge(original: Confidences, pruned: Confidences, labels: np.ndarray | None = None) -> CalibrationSection:
    """At 95 %."""
    labels = np.arange(len(original.right)) if labels is None else labels
    return judge_calibration(original, pruned, labels=labels, scores="logits", confidence_level=0.95, seed=0)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_likelihood_and_brier_are_those_of_scikit_learn(classes: int) -> None:
    logs, target = scores(classes, 1.7)
    found = Confidences.of_classes(logs, target)
    labels = list(range(classes))
    assert found.nll.mean() == pytest.approx(log_loss(target, np.exp(logs), labels=labels), rel=1e-9)
    wanted = brier_score_loss(target, np.exp(logs), labels=labels) if classes > 2 else None
    if wanted is None:
        wanted = brier_score_loss(target, np.exp(logs)[:, 1])
    assert found.brier.mean() == pytest.approx(wanted, rel=1e-9)


def test_the_error_over_bins_of_equal_mass_is_its_definition() -> None:
    logs, target = scores(5, 2.0, count=300)
    found = Confidences.of_classes(logs, target)
    order = np.argsort(found.confidence)
    parts = [(found.confidence[part].mean(), found.right[part].mean()) for part in np.split(order, 10)]
    wanted = np.mean([abs(confidence - accuracy) for confidence, accuracy in parts])
    assert expected_calibration_error(found.confidence, found.right, 10) == pytest.approx(wanted, rel=1e-9)
    bins = reliability(found, 10)
    assert np.allclose([(one.confidence, one.accuracy) for one in bins], parts, rtol=1e-9)
    assert [one.predictions for one in bins] == [30] * 10
    assert all(one.low <= one.confidence <= one.high for one in bins)


def test_equal_confidences_share_a_bin_whatever_their_order() -> None:
    confidence, right = np.array([1.0] * 90 + [0.5] * 10), np.array([1.0, 0.0] * 50)
    wanted = expected_calibration_error(confidence, right, 10)
    assert wanted == pytest.approx(0.45)
    order = np.random.default_rng(0).permutation(100)
    assert expected_calibration_error(confidence[order], right[order], 10) == pytest.approx(wanted)


def test_a_model_that_became_too_sure_shows() -> None:
    logs, target = scores(10, 1.0, count=1_500)
    sure, _ = scores(10, 3.0, count=1_500)
    found = judge(Confidences.of_classes(logs, target), Confidences.of_classes(sure, target))
    for number in (found.ece, found.nll, found.brier):
        assert number.delta == pytest.approx(number.pruned - number.original)
        assert 0 < number.interval[0] < number.delta < number.interval[1]
    assert found.bins == 15
    assert sum(one.predictions for one in found.reliability.pruned) == found.predictions == 1_500


def test_identical_models_are_calibrated_alike() -> None:
    logs, target = scores(4, 2.0)
    model = Confidences.of_classes(logs, target)
    found = judge(model, model)
    for number in (found.ece, found.nll, found.brier):
        assert (number.delta, number.interval) == (0, (0, 0))


def test_elements_of_a_sample_are_resampled_together() -> None:
    logs, target = scores(4, 1.0, count=400)
    other = log_softmax(logs + np.random.default_rng(1).normal(0, 0.5, logs.shape), axis=1)
    tenfold = [Confidences.of_classes(np.repeat(one, 10, axis=0), np.repeat(target, 10)) for one in (logs, other)]
    single = [Confidences.of_classes(one, target) for one in (logs, other)]
    grouped, alone = judge(*tenfold, labels=np.repeat(np.arange(400), 10)), judge(*single)
    for name in ("nll", "brier", "ece"):
        wide, narrow = (getattr(one, name).interval for one in (grouped, alone))
        assert wide[1] - wide[0] == pytest.approx(narrow[1] - narrow[0], rel=0.2)


def test_certain_and_wrong_is_infinite_and_stays_out() -> None:
    logs = np.log(np.array([[1.0, 0.0], [0.5, 0.5]]), where=[[True, False], [True, True]], out=np.full((2, 2), -np.inf))
    found = Confidences.of_classes(logs, np.array([1, 0]))
    number = judge(found, found).nll
    assert (number.original, number.delta, number.interval) == (None, None, None)
