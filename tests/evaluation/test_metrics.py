"""Metrics: sample by sample, against references."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.metrics import choose_metric
from pruning_server.spec.request import Task

rng = np.random.default_rng(0)


def test_accuracy_of_several_classes() -> None:
    outputs, targets = rng.normal(size=(50, 4)), rng.integers(4, size=50)
    metric = choose_metric(Task.CLASSIFICATION, (4,))
    values = metric.per_sample(outputs, targets, outputs)
    assert (metric.name, metric.is_binary) == ("accuracy", True)
    assert set(values) <= {0.0, 1.0}
    assert metric.mean(values) == pytest.approx(reference.accuracy_score(targets, outputs.argmax(axis=1)))
    one_hot = metric.per_sample(outputs, np.eye(4)[targets], outputs)
    assert np.array_equal(values, one_hot)
    assert np.array_equal(values, metric.per_sample(outputs, targets.reshape(-1, 1), outputs))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_accuracy_of_yes_and_no(shape: tuple[int, ...], threshold: float) -> None:
    metric = choose_metric(Task.CLASSIFICATION, shape, threshold=threshold)
    outputs = np.array([-1.0, 0.2, 0.7, 3.0]).reshape(4, *shape)
    wanted = [1.0, float(threshold == 0.0), 1.0, 0.0]
    assert metric.per_sample(outputs, np.array([0, 1, 1, 0]), outputs).tolist() == wanted
    assert metric.is_binary


def test_several_labels_must_all_be_right() -> None:
    metric = choose_metric(Task.MULTILABEL, (3,))
    outputs = np.array([[1.0, -1.0, 2.0], [1.0, -1.0, -2.0]])
    assert metric.name == "exact_match"
    assert metric.per_sample(outputs, np.array([[1, 0, 1], [1, 0, 1]]), outputs).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("width", [1, 3])
def test_r2_is_the_mean_of_its_terms(width: int) -> None:
    targets = rng.normal(3.0, 2.0, size=(80, width))
    outputs = targets + rng.normal(scale=0.7, size=(80, width))
    metric = choose_metric(Task.REGRESSION, (width,))
    wanted = reference.r2_score(targets, outputs, multioutput="variance_weighted")
    assert (metric.name, metric.is_binary) == ("r2", False)
    assert metric.mean(metric.per_sample(outputs, targets, outputs)) == pytest.approx(wanted, abs=1e-12)
    # The unit of the targets does not matter: a margin means the same for metres and for millimetres.
    scaled = metric.per_sample(outputs * 1000, targets * 1000, outputs)
    assert metric.mean(scaled) == pytest.approx(wanted, abs=1e-9)


def test_r2_stays_a_number() -> None:
    metric = choose_metric(Task.REGRESSION, ())
    constant = metric.per_sample(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.zeros(2))
    assert constant.tolist() == [1.0, 0.0]
    exploded = metric.per_sample(np.array([np.inf, 1e300, 1.0]), np.array([0.0, 1.0, 2.0]), np.zeros(3))
    assert np.isfinite(exploded).all()
    assert exploded[0] < -1e9


def test_elements_of_a_map_first_axis() -> None:
    outputs, targets = rng.normal(size=(5, 3, 4, 6)), rng.integers(3, size=(5, 4, 6))
    targets[0, :2] = -100
    metric = choose_metric(Task.SEGMENTATION, (3, 4, 6), class_axis=1)
    right = outputs.argmax(axis=1) == targets
    values = metric.per_sample(outputs, targets, outputs)
    assert values[1:] == pytest.approx(right[1:].reshape(4, -1).mean(axis=1))
    assert values[0] == pytest.approx(right[0, 2:].mean())
    assert not metric.is_binary


@pytest.mark.parametrize("task", [Task.SEQUENCE_LABELLING, Task.LANGUAGE_MODELLING])
def test_tokens_with_classes_on_either_axis(task: Task) -> None:
    outputs, targets = rng.normal(size=(5, 7, 11)), rng.integers(11, size=(5, 7))
    wanted = (outputs.argmax(axis=2) == targets).mean(axis=1)
    last = choose_metric(task, (7, 11), class_axis=2).per_sample(outputs, targets, outputs)
    first = choose_metric(task, (11, 7), class_axis=1).per_sample(outputs.transpose(0, 2, 1), targets, outputs)
    assert last == pytest.approx(wanted)
    assert first == pytest.approx(wanted)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_elements_that_are_yes_or_no(threshold: float) -> None:
    outputs, targets = rng.normal(size=(5, 1, 4, 6)), rng.integers(2, size=(5, 4, 6))
    targets[:, 0] = -100
    metric = choose_metric(Task.SEGMENTATION, (1, 4, 6), threshold=threshold)
    right = (outputs[:, 0] > threshold) == targets
    assert metric.per_sample(outputs, targets, outputs) == pytest.approx(right[:, 1:].reshape(5, -1).mean(axis=1))


def test_the_next_token_of_a_sample() -> None:
    metric = choose_metric(Task.LANGUAGE_MODELLING, (4,), class_axis=1)
    assert (metric.name, metric.is_binary) == ("accuracy", True)


def test_nothing_counts_in_a_sample() -> None:
    metric = choose_metric(Task.SEGMENTATION, (2, 3), class_axis=1)
    assert metric.per_sample(np.ones((1, 2, 3)), np.full((1, 3), -100), np.ones(1)).tolist() == [1.0]


@pytest.mark.parametrize(
    ("task", "shape", "name"),
    [
        (Task.AGREEMENT, (5,), "agreement"),
        (Task.AGREEMENT, (), "agreement_r2"),
        (Task.AGREEMENT, (1,), "agreement_r2"),
        (Task.AGREEMENT, (3, 4), "agreement_r2"),
        (Task.EMBEDDING, (6,), "cosine_similarity"),
    ],
)
def test_without_targets_the_original_is_the_truth(task: Task, shape: tuple[int, ...], name: str) -> None:
    metric = choose_metric(task, shape)
    original = rng.normal(size=(30, *shape))
    other = original + rng.normal(scale=0.5, size=original.shape)
    assert metric.name == name
    assert metric.per_sample(original, None, original).tolist() == [1.0] * 30
    assert metric.mean(metric.per_sample(other, None, original)) < 1.0


def test_cosine_of_nothing() -> None:
    metric = choose_metric(Task.EMBEDDING, (2,))
    outputs, original = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert metric.per_sample(outputs, None, original).tolist() == [1.0, 0.0, 1.0]


def test_targets_that_are_needed() -> None:
    with pytest.raises(JobFailureError) as failed:
        choose_metric(Task.CLASSIFICATION, (3,)).per_sample(np.ones((2, 3)), None, np.ones((2, 3)))
    assert failed.value.reason is Reason.DATASET_TARGETS


def test_the_mean_of_nothing_is_no_number() -> None:
    assert np.isnan(choose_metric(Task.REGRESSION, ()).mean(np.zeros(0)))
