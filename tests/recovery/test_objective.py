"""Task and loss: what the caller said, else what is safe to infer, else a clear refusal."""

from __future__ import annotations

import itertools

import pytest

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.choosing import choose_objective
from pruning_server.recovery.objective import Link, OutputFacts, TargetFacts, TargetForm, TokenFacts
from pruning_server.spec.request import Loss, Task

LOGITS = OutputFacts(dtype="float32", shape=(3,))
PROBABILITIES = OutputFacts(dtype="float32", shape=(3,), distribution_axes=(1,), in_unit_interval=True)
SINGLE = OutputFacts(dtype="float32", shape=(1,))
SCALAR = OutputFacts(dtype="float32", shape=())
IMAGE = OutputFacts(dtype="float32", shape=(2, 4, 4))

LABELS = TargetFacts(dtype="int64", shape=(), integer=True, integral=True, binary=False, one_hot=False)
COLUMN = TargetFacts(dtype="int64", shape=(1,), integer=True, integral=True, binary=False, one_hot=False)
BINARY = TargetFacts(dtype="uint8", shape=(), integer=True, integral=True, binary=True, one_hot=False)
ONE_HOT = TargetFacts(dtype="float32", shape=(3,), integer=False, integral=True, binary=True, one_hot=True)
INTEGER_ONE_HOT = TargetFacts(dtype="int64", shape=(3,), integer=True, integral=True, binary=True, one_hot=True)
FLOATS = TargetFacts(dtype="float32", shape=(3,), integer=False, integral=False, binary=False, one_hot=False)
NUMBER = TargetFacts(dtype="float64", shape=(), integer=False, integral=False, binary=False, one_hot=False)
WHOLE = TargetFacts(dtype="float32", shape=(), integer=False, integral=True, binary=False, one_hot=False)
SEQUENCE = OutputFacts(dtype="float32", shape=(6, 5))
MAP = OutputFacts(dtype="float32", shape=(1, 4, 4))
TOKENS = TargetFacts(dtype="int64", shape=(6,), integer=True, integral=True, binary=False, one_hot=False)
MASKS = TargetFacts(dtype="uint8", shape=(1, 4, 4), integer=True, integral=True, binary=False, one_hot=False)
YES_NO_MAP = TargetFacts(
    dtype="uint8", shape=(4, 4), integer=True, integral=True, binary=True, one_hot=False, binary_or_ignored=True
)
FLOAT_BINARY = TargetFacts(
    dtype="float32", shape=(1,), integer=False, integral=True, binary=True, one_hot=False, binary_or_ignored=True
)
SOFT = TargetFacts(
    dtype="float32", shape=(3,), integer=False, integral=False, binary=False, one_hot=False, distributions=True
)
PIXELS = TargetFacts(dtype="int64", shape=(4, 4), integer=True, integral=True, binary=False, one_hot=False)


def choose(output, targets, task=None, loss=None, *, has_loss_module=False, tokens=None):
    return choose_objective(
        task=task, loss=loss, has_loss_module=has_loss_module, output=output, targets=targets, tokens=tokens
    )


@pytest.mark.parametrize(
    ("output", "targets", "task", "loss", "form"),
    [
        (LOGITS, LABELS, Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.LABELS),
        (LOGITS, COLUMN, Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.LABELS),
        (LOGITS, BINARY, Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.LABELS),
        (SINGLE, BINARY, Task.CLASSIFICATION, Loss.BCE_WITH_LOGITS, TargetForm.VALUES),
        (SCALAR, BINARY, Task.CLASSIFICATION, Loss.BCE_WITH_LOGITS, TargetForm.VALUES),
        (LOGITS, FLOATS, Task.REGRESSION, Loss.MSE, TargetForm.VALUES),
        (LOGITS, WHOLE, Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.LABELS),
        (SINGLE, WHOLE, Task.REGRESSION, Loss.MSE, TargetForm.VALUES),
        (IMAGE, PIXELS, Task.SEGMENTATION, Loss.CROSS_ENTROPY, TargetForm.ELEMENTS),
        (IMAGE, MASKS, Task.SEGMENTATION, Loss.CROSS_ENTROPY, TargetForm.ELEMENTS),
        (SEQUENCE, TOKENS, Task.SEQUENCE_LABELLING, Loss.CROSS_ENTROPY, TargetForm.ELEMENTS),
        (SINGLE, NUMBER, Task.REGRESSION, Loss.MSE, TargetForm.VALUES),
        (LOGITS, None, Task.AGREEMENT, Loss.MSE, TargetForm.NONE),
        (IMAGE, None, Task.AGREEMENT, Loss.MSE, TargetForm.NONE),
    ],
)
def test_inferred(output, targets, task, loss, form) -> None:
    chosen = choose(output, targets)
    assert (chosen.task, chosen.loss, chosen.form) == (task, loss, form)


@pytest.mark.parametrize(
    ("output", "targets", "task", "loss", "expected"),
    [
        (LOGITS, ONE_HOT, Task.CLASSIFICATION, None, (Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.ONE_HOT)),
        (LOGITS, INTEGER_ONE_HOT, Task.CLASSIFICATION, None, (Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.ONE_HOT)),
        (LOGITS, INTEGER_ONE_HOT, Task.MULTILABEL, None, (Task.MULTILABEL, Loss.BCE_WITH_LOGITS, TargetForm.VALUES)),
        (LOGITS, ONE_HOT, None, Loss.BCE_WITH_LOGITS, (Task.MULTILABEL, Loss.BCE_WITH_LOGITS, TargetForm.VALUES)),
        (LOGITS, WHOLE, Task.CLASSIFICATION, None, (Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.LABELS)),
        (LOGITS, WHOLE, None, Loss.CROSS_ENTROPY, (Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.LABELS)),
        (SINGLE, FLOAT_BINARY, None, Loss.BCE_WITH_LOGITS, (Task.CLASSIFICATION, Loss.BCE_WITH_LOGITS, TargetForm.VALUES)),
        (SINGLE, FLOAT_BINARY, Task.CLASSIFICATION, None, (Task.CLASSIFICATION, Loss.BCE_WITH_LOGITS, TargetForm.VALUES)),
        (SINGLE, FLOAT_BINARY, Task.REGRESSION, None, (Task.REGRESSION, Loss.MSE, TargetForm.VALUES)),
        (LOGITS, ONE_HOT, Task.REGRESSION, None, (Task.REGRESSION, Loss.MSE, TargetForm.VALUES)),
        (LOGITS, SOFT, Task.REGRESSION, None, (Task.REGRESSION, Loss.MSE, TargetForm.VALUES)),
        (IMAGE, PIXELS, None, Loss.CROSS_ENTROPY, (Task.SEGMENTATION, Loss.CROSS_ENTROPY, TargetForm.ELEMENTS)),
        (IMAGE, MASKS, Task.SEGMENTATION, None, (Task.SEGMENTATION, Loss.CROSS_ENTROPY, TargetForm.ELEMENTS)),
        (MAP, YES_NO_MAP, Task.SEGMENTATION, None, (Task.SEGMENTATION, Loss.BCE_WITH_LOGITS, TargetForm.ELEMENTS)),
        (MAP, YES_NO_MAP, None, Loss.BCE_WITH_LOGITS, (Task.SEGMENTATION, Loss.BCE_WITH_LOGITS, TargetForm.ELEMENTS)),
        (SEQUENCE, TOKENS, Task.LANGUAGE_MODELLING, None, (Task.LANGUAGE_MODELLING, Loss.CROSS_ENTROPY, TargetForm.ELEMENTS)),
        (LOGITS, LABELS, Task.LANGUAGE_MODELLING, None, (Task.LANGUAGE_MODELLING, Loss.CROSS_ENTROPY, TargetForm.LABELS)),
        (LOGITS, None, Task.EMBEDDING, None, (Task.EMBEDDING, Loss.MSE, TargetForm.NONE)),
        (LOGITS, LABELS, Task.EMBEDDING, Loss.L1, (Task.EMBEDDING, Loss.L1, TargetForm.NONE)),
        (LOGITS, None, None, Loss.BCE_WITH_LOGITS, (Task.AGREEMENT, Loss.BCE_WITH_LOGITS, TargetForm.VALUES)),
        (SINGLE, WHOLE, None, None, (Task.REGRESSION, Loss.MSE, TargetForm.VALUES)),
        (LOGITS, FLOATS, None, Loss.L1, (Task.REGRESSION, Loss.L1, TargetForm.VALUES)),
        (LOGITS, LABELS, None, Loss.CROSS_ENTROPY, (Task.CLASSIFICATION, Loss.CROSS_ENTROPY, TargetForm.LABELS)),
        (LOGITS, LABELS, Task.AGREEMENT, None, (Task.AGREEMENT, Loss.MSE, TargetForm.NONE)),
        (LOGITS, None, None, Loss.CROSS_ENTROPY, (Task.AGREEMENT, Loss.CROSS_ENTROPY, TargetForm.LABELS)),
        (LOGITS, None, Task.AGREEMENT, Loss.L1, (Task.AGREEMENT, Loss.L1, TargetForm.NONE)),
    ],
)  # fmt: skip
def test_named(output, targets, task, loss, expected) -> None:
    chosen = choose(output, targets, task, loss)
    assert (chosen.task, chosen.loss, chosen.form) == expected


@pytest.mark.parametrize(
    ("targets", "task", "expected"),
    [
        (LABELS, None, (Task.CLASSIFICATION, TargetForm.LABELS)),
        (FLOATS, None, (Task.REGRESSION, TargetForm.VALUES)),
        (ONE_HOT, Task.CLASSIFICATION, (Task.CLASSIFICATION, TargetForm.ONE_HOT)),
        (None, None, (Task.AGREEMENT, TargetForm.NONE)),
    ],
)
def test_a_loss_module_leaves_the_task_to_the_targets(targets, task, expected) -> None:
    chosen = choose(LOGITS, targets, task, has_loss_module=True)
    assert (chosen.task, chosen.form) == expected
    assert chosen.loss is None
    assert chosen.loss_name == "module"


@pytest.mark.parametrize(
    ("output", "targets", "task", "loss", "reason"),
    [
        (LOGITS, INTEGER_ONE_HOT, None, None, Reason.DATASET_TARGETS),
        (LOGITS, ONE_HOT, None, None, Reason.DATASET_TARGETS),
        (LOGITS, SOFT, None, None, Reason.DATASET_TARGETS),
        (LOGITS, SOFT, Task.CLASSIFICATION, None, Reason.DATASET_TARGETS),
        (SINGLE, FLOAT_BINARY, None, None, Reason.DATASET_TARGETS),
        (MAP, YES_NO_MAP, None, None, Reason.DATASET_TARGETS),
        (IMAGE, None, Task.SEGMENTATION, None, Reason.DATASET_TARGETS),
        (IMAGE, FLOATS, Task.SEGMENTATION, None, Reason.DATASET_TARGETS),
        (IMAGE, PIXELS, Task.CLASSIFICATION, None, Reason.DATASET_TARGETS),
        (IMAGE, PIXELS, Task.SEGMENTATION, Loss.MSE, Reason.LOSS_UNSUITABLE),
        (MAP, YES_NO_MAP, Task.SEGMENTATION, Loss.MSE, Reason.LOSS_UNSUITABLE),
        (SEQUENCE, None, Task.LANGUAGE_MODELLING, None, Reason.DATASET_TARGETS),
        (LOGITS, None, Task.EMBEDDING, Loss.CROSS_ENTROPY, Reason.LOSS_UNSUITABLE),
        (IMAGE, None, None, Loss.CROSS_ENTROPY, Reason.LOSS_UNSUITABLE),
        (LOGITS, NUMBER, None, None, Reason.DATASET_TARGETS),
        (SINGLE, LABELS, None, None, Reason.DATASET_TARGETS),
        (LOGITS, PIXELS, None, None, Reason.DATASET_TARGETS),
        (LOGITS, None, Task.REGRESSION, None, Reason.DATASET_TARGETS),
        (LOGITS, FLOATS, None, Loss.CROSS_ENTROPY, Reason.DATASET_TARGETS),
        (LOGITS, LABELS, None, Loss.MSE, Reason.LOSS_UNSUITABLE),
        (LOGITS, FLOATS, None, Loss.BCE_WITH_LOGITS, Reason.DATASET_TARGETS),
        (LOGITS, LABELS, Task.CLASSIFICATION, Loss.L1, Reason.LOSS_UNSUITABLE),
        (LOGITS, FLOATS, Task.REGRESSION, Loss.CROSS_ENTROPY, Reason.LOSS_UNSUITABLE),
        (LOGITS, ONE_HOT, Task.MULTILABEL, Loss.MSE, Reason.LOSS_UNSUITABLE),
    ],
)
def test_refused_with_what_to_change(output, targets, task, loss, reason) -> None:
    with pytest.raises(JobFailureError) as caught:
        choose(output, targets, task, loss)
    assert caught.value.reason is reason
    assert any(word in caught.value.message for word in ("--task", "--loss", "Use ", "Add ", "add ", "0 or 1"))


def test_probabilities_are_recognised_unless_the_loss_says_logits() -> None:
    assert choose(PROBABILITIES, LABELS).link is Link.PROBABILITIES
    assert choose(PROBABILITIES, LABELS, loss=Loss.CROSS_ENTROPY).link is Link.IDENTITY
    assert choose(LOGITS, LABELS).link is Link.IDENTITY


def test_classes_are_found_on_the_axis_that_the_targets_lack() -> None:
    first = choose(IMAGE, PIXELS)
    assert (first.class_axis, first.classes, first.ignored) == (1, 2, (-100, 255))
    last = choose(OutputFacts(dtype="float32", shape=(4, 4, 2)), PIXELS)
    assert (last.class_axis, last.classes) == (3, 2)
    sequence = choose(SEQUENCE, TOKENS)
    assert (sequence.class_axis, sequence.classes, sequence.ignored) == (2, 5, (-100,))
    turned = choose(OutputFacts(dtype="float32", shape=(5, 6)), TOKENS)
    assert (turned.class_axis, turned.classes) == (1, 5)


def test_two_axes_that_could_be_the_classes_are_told() -> None:
    square = OutputFacts(dtype="float32", shape=(6, 6))
    tokens = choose(square, TOKENS)
    assert tokens.class_axis == 2
    assert any("axis 1 is as long" in note for note in tokens.notes)
    cube = choose(OutputFacts(dtype="float32", shape=(4, 4, 4)), PIXELS)
    assert cube.class_axis == 1
    assert any("axis 3 is as long" in note for note in cube.notes)


def test_a_language_model_is_judged_on_its_own_tokens() -> None:
    tokens = TokenFacts(length=6)
    chosen = choose(SEQUENCE, None, Task.LANGUAGE_MODELLING, tokens=tokens)
    assert (chosen.next_tokens, chosen.form, chosen.classes) == (True, TargetForm.ELEMENTS, 5)
    repeated = choose(SEQUENCE, TOKENS, tokens=TokenFacts(length=6, repeated=True))
    assert (repeated.task, repeated.next_tokens) == (Task.LANGUAGE_MODELLING, True)
    shifted = choose(SEQUENCE, TOKENS, tokens=TokenFacts(length=6, shifted=True))
    assert (shifted.task, shifted.next_tokens) == (Task.LANGUAGE_MODELLING, False)
    assert any("--task language_modelling" in note for note in choose(SEQUENCE, None, tokens=tokens).notes)
    with pytest.raises(JobFailureError, match="language_modelling needs targets"):
        choose(LOGITS, None, Task.LANGUAGE_MODELLING, tokens=tokens)


def test_every_choice_has_its_reason() -> None:
    for output, targets, task in [
        (LOGITS, LABELS, None),
        (IMAGE, PIXELS, None),
        (LOGITS, None, None),
        (SINGLE, NUMBER, None),
    ]:
        assert choose(output, targets, task).reason
    assert "names the task" in choose(LOGITS, LABELS, Task.CLASSIFICATION).reason
    assert "cross_entropy" in choose(LOGITS, LABELS, loss=Loss.CROSS_ENTROPY).reason


def test_every_combination_is_decided_or_refused() -> None:
    outputs = [LOGITS, PROBABILITIES, SINGLE, SCALAR, IMAGE, SEQUENCE, MAP]
    targets = [None, LABELS, COLUMN, BINARY, ONE_HOT, INTEGER_ONE_HOT, FLOATS, NUMBER, PIXELS, TOKENS, YES_NO_MAP, SOFT]
    decided = 0
    for output, target, task, loss in itertools.product(outputs, targets, [None, *Task], [None, *Loss]):
        try:
            chosen = choose(output, target, task, loss)
        except JobFailureError:
            continue
        decided += 1
        assert chosen.loss is not None
        assert loss in {None, chosen.loss}
        assert task in {None, chosen.task}
    assert decided > 50
