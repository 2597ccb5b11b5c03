"""Targets of every type and range: taken where their meaning is certain, else refused before anything expensive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.runs import Ran, make_spec
from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.choosing import choose_objective
from pruning_server.recovery.objective import Objective, OutputFacts, TargetForm
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Task
from pruning_server.worker.facts import check_labels, output_facts, target_facts
from pruning_server.worker.feeding import Samples
from pruning_server.worker.next_tokens import NextTokens, token_facts

COUNT = 30
X = np.random.default_rng(0).normal(size=(COUNT, 8)).astype(np.float32)
LABELS = np.arange(COUNT) % 3
THREE = OutputFacts(dtype="float32", shape=(3,))
MAPS = OutputFacts(dtype="float32", shape=(3, 2, 4))
WORDS = OutputFacts(dtype="float32", shape=(5, 3))
MASKS = np.arange(COUNT * 8).reshape(COUNT, 2, 4) % 3
TAGS = np.arange(COUNT * 5).reshape(COUNT, 5) % 3


def samples(targets: np.ndarray, name: str = "validation") -> Samples:
    return Samples(name, (X,), ("inputs",), ("float32",), targets, None, None)


def aim(output: OutputFacts, targets: np.ndarray, task: Task | None = None) -> tuple[Objective, tuple[str, ...]]:
    objective = choose_objective(
        task=task, loss=None, has_loss_module=False, output=output, targets=target_facts(targets)
    )
    return objective, check_labels(samples(targets), objective)


def refusal(output: OutputFacts, targets: np.ndarray, task: Task | None = None) -> JobFailureError:
    with pytest.raises(JobFailureError) as caught:
        aim(output, targets, task)
    return caught.value


INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float16, np.float32, np.float64])
def test_class_numbers_of_every_type(dtype: type) -> None:
    objective, _ = aim(THREE, LABELS.astype(dtype))
    assert (objective.task, objective.form) == (Task.CLASSIFICATION, TargetForm.LABELS)
    assert bool(objective.notes) == (np.dtype(dtype).kind == "f")
    column, _ = aim(THREE, LABELS.astype(dtype)[:, None])
    assert column.form is TargetForm.LABELS


def test_booleans_are_two_classes() -> None:
    two = OutputFacts(dtype="float32", shape=(2,))
    assert aim(two, LABELS > 0)[0].form is TargetForm.LABELS
    assert aim(OutputFacts(dtype="float32", shape=(1,)), LABELS > 0)[0].form is TargetForm.VALUES


@pytest.mark.parametrize("dtype", [*INTEGERS, np.float32])
def test_masks_of_every_type(dtype: type) -> None:
    objective, _ = aim(MAPS, MASKS.astype(dtype))
    assert (objective.task, objective.class_axis) == (Task.SEGMENTATION, 1)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_one_hot_of_every_type_where_it_is_named(dtype: type) -> None:
    one_hot = np.eye(3)[LABELS].astype(dtype)
    assert aim(THREE, one_hot, Task.CLASSIFICATION)[0].form is TargetForm.ONE_HOT
    assert "more than one task" in refusal(THREE, one_hot).message


@pytest.mark.parametrize(
    ("label", "said"), [(3, "is 3"), (-1, "is -1"), (-100, "is -100"), (255, "is 255"), (2**40, str(2**40))]
)
@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_classes_that_the_model_does_not_have(label: int, said: str, dtype: type) -> None:
    targets = LABELS.astype(dtype)
    targets[17] = label
    failed = refusal(THREE, targets)
    assert failed.reason is Reason.DATASET_LABEL_OUT_OF_RANGE
    assert "targets[17]" in failed.message
    assert said in failed.message
    assert "0 to 2" in failed.message


@pytest.mark.parametrize(("label", "taken"), [(-100, True), (255, True), (3, False), (-1, False), (254, False)])
def test_pixels_that_do_not_count(label: int, taken: bool) -> None:
    targets = MASKS.copy()
    targets[4, 1, 2] = label
    if taken:
        assert aim(MAPS, targets)[0].ignored == (-100, 255)
        return
    failed = refusal(MAPS, targets)
    assert failed.reason is Reason.DATASET_LABEL_OUT_OF_RANGE
    assert "targets[4], element 6," in failed.message
    assert "-100 or 255" in failed.message


@pytest.mark.parametrize(("label", "taken"), [(-100, True), (255, False)])
def test_tokens_that_do_not_count(label: int, taken: bool) -> None:
    targets = TAGS.copy()
    targets[4, 1] = label
    if taken:
        aim(WORDS, targets)
    else:
        assert refusal(WORDS, targets).reason is Reason.DATASET_LABEL_OUT_OF_RANGE


def test_255_counts_where_it_is_a_class() -> None:
    many = OutputFacts(dtype="float32", shape=(256, 2, 4))
    objective, _ = aim(many, np.full((COUNT, 2, 4), 255, dtype=np.uint8))
    assert objective.ignored == (-100,)


def test_samples_without_an_element_that_counts_are_told_and_sets_of_them_refused() -> None:
    targets = MASKS.copy()
    targets[:2] = -100
    assert "2 samples of the validation set" in aim(MAPS, targets)[1][0]
    failed = refusal(MAPS, np.full_like(MASKS, -100))
    assert failed.reason is Reason.DATASET_TARGETS
    assert "No element" in failed.message


@pytest.mark.parametrize(
    ("targets", "advice"),
    [
        (LABELS + 0.5, "Class labels are integers"),
        (np.full((COUNT, 3), 1 / 3), "probabilities"),
        (np.eye(3, dtype=np.float32)[LABELS], "more than one task"),
        (np.stack([LABELS, LABELS], axis=1), "Class labels are integers"),
        (np.zeros((COUNT, 4)), "shaped like the output"),
    ],
)
def test_what_could_mean_several_things_is_refused_with_what_to_send(targets: np.ndarray, advice: str) -> None:
    failed = refusal(THREE, targets)
    assert failed.reason is Reason.DATASET_TARGETS
    assert advice in failed.message
    assert "--task" in failed.message


def test_one_value_for_each_class_and_pixel_is_refused() -> None:
    one_hot = np.moveaxis(np.eye(3, dtype=np.float32)[MASKS], 3, 1)
    assert "argmax over the class axis" in refusal(MAPS, one_hot, Task.SEGMENTATION).message
    assert "more than one task" in refusal(MAPS, one_hot).message


def test_tokens_that_the_model_has_no_output_for() -> None:
    ids = np.arange(COUNT * 5).reshape(COUNT, 5) % 4
    given = Samples("validation", (ids,), ("inputs",), ("int64",), None, None, None)
    objective = choose_objective(
        task=Task.LANGUAGE_MODELLING, loss=None, has_loss_module=False, output=WORDS, targets=None,
        tokens=token_facts(NextTokens(0), given),
    )  # fmt: skip
    with pytest.raises(JobFailureError, match=r"token at place 3 of sample 0 .* is 3") as caught:
        check_labels(given, objective, NextTokens(0))
    assert caught.value.reason is Reason.DATASET_LABEL_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("output", "axes", "unit"),
    [
        (torch.randn(40, 3), (), False),
        (torch.randn(40, 3).softmax(1), (1,), True),
        (torch.randn(40, 3).log_softmax(1), (), False),
        (torch.randn(9, 3, 4, 5).softmax(1), (1,), True),
        (torch.randn(9, 4, 5, 3).softmax(3), (3,), True),
        (torch.rand(40, 1), (), True),
    ],
)
def test_probabilities_are_told_from_logits(output: torch.Tensor, axes: tuple[int, ...], unit: bool) -> None:
    found = output_facts(output)
    assert (found.distribution_axes, found.in_unit_interval) == (axes, unit)


@pytest.mark.parametrize(
    ("arrays", "fields"),
    [
        ({"targets": LABELS + 1}, {}),
        ({"targets": LABELS + 0.5}, {}),
        ({"targets": np.full(COUNT, -100)}, {}),
        ({"targets": MASKS}, {"task": Task.SEGMENTATION}),
        ({}, {"task": Task.LANGUAGE_MODELLING}),
    ],
)
def test_jobs_fail_before_anything_expensive(
    arrays: dict[str, np.ndarray], fields: dict[str, Any], prune: Callable[..., Ran]
) -> None:
    model = zoo.scripted(nn.Sequential(nn.Linear(8, 3)))
    assert prune(model, {"inputs": X, **arrays}, make_spec(**fields)).failure.phase is Phase.OBSERVE


def test_the_training_set_is_named_where_it_is_wrong(prune: Callable[..., Ran]) -> None:
    model = zoo.scripted(nn.Sequential(nn.Linear(8, 3)))
    train = {"inputs": X, "targets": LABELS + 1}
    failure = prune(model, {"inputs": X, "targets": LABELS}, make_spec(), train=train).failure
    assert "training set" in failure.text
