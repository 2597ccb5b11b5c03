"""What the observed output and the stored targets look like, as the choice of task and loss needs it."""

from __future__ import annotations

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.objective import Objective, OutputFacts, TargetFacts, TargetForm
from pruning_server.spec.request import Task
from pruning_server.worker.feeding import Samples

BLOCK_ROWS = 4096
DISTRIBUTION_TOLERANCE = 1e-3
# With fewer observed numbers, logits could lie in [0, 1] by chance.
MIN_UNIT_INTERVAL_VALUES = 32


def output_facts(output: torch.Tensor) -> OutputFacts:
    """Facts of observed outputs [n, ...]."""
    values = output.detach().double()
    in_unit = bool(((values >= 0) & (values <= 1)).all()) and values.numel() >= MIN_UNIT_INTERVAL_VALUES
    sums = values.sum(dim=1) if values.ndim == 2 and values.shape[1] >= 2 else None
    distributions = sums is not None and bool(((sums - 1).abs() < DISTRIBUTION_TOLERANCE).all())
    return OutputFacts(
        dtype=str(output.dtype).removeprefix("torch."),
        shape=tuple(output.shape[1:]),
        rows_are_distributions=distributions and bool((values >= 0).all()),
        in_unit_interval=in_unit,
    )


def target_facts(targets: np.ndarray | None) -> TargetFacts | None:
    """Facts of stored targets [N, ...], read in blocks."""
    if targets is None:
        return None
    integral, binary, one_hot = True, True, targets.ndim == 2 and targets.shape[1] >= 2
    for start in range(0, len(targets), BLOCK_ROWS):
        block = targets[start : start + BLOCK_ROWS]
        binary = binary and bool(((block == 0) | (block == 1)).all())
        one_hot = one_hot and binary and bool((block.sum(axis=1) == 1).all())
        integral = integral and (targets.dtype.kind != "f" or bool((block == np.round(block)).all()))
        if not (binary or integral):
            break
    return TargetFacts(
        dtype=str(targets.dtype),
        shape=tuple(targets.shape[1:]),
        integer=targets.dtype.kind in "iub",
        integral=integral,
        binary=binary,
        one_hot=binary and one_hot,
    )


def check_labels(samples: Samples, objective: Objective) -> None:
    """Refuses class numbers that the model has no output for.

    Raises:
        JobFailureError: DATASET_LABEL_OUT_OF_RANGE, naming the value, its row and the number of classes.
    """
    if samples.targets is None or objective.form is not TargetForm.LABELS or objective.classes is None:
        return
    for start in range(0, len(samples), BLOCK_ROWS):
        block = samples.targets[start : start + BLOCK_ROWS].reshape(-1)
        wrong = np.flatnonzero((block < 0) | (block >= objective.classes))
        if wrong.size:
            row = start + int(wrong[0])
            label = int(block[wrong[0]])
            text = (
                f"targets[{row}] of the {samples.name} set is {label}; the model has {objective.classes} classes, so "
                f"labels run from 0 to {objective.classes - 1}."
            )
            metadata = {"row": str(row), "label": str(label), "classes": str(objective.classes)}
            raise JobFailureError(Reason.DATASET_LABEL_OUT_OF_RANGE, text, metadata=metadata)


def check_alike(validation: Samples, train: Samples, objective: Objective) -> None:
    """Refuses a training set that is not fed as the validation set is.

    Raises:
        JobFailureError: number, type or shape of the inputs differ (MODEL_INPUT_MISMATCH), or it has no targets, or
            others (DATASET_TARGETS).
    """
    ours, theirs = _described(validation), _described(train)
    if ours != theirs:
        text = f"The training set holds {theirs} and the validation set {ours}; store both alike."
        raise JobFailureError(Reason.MODEL_INPUT_MISMATCH, text)
    if objective.task is Task.AGREEMENT or validation.targets is None:
        return
    if train.targets is None or train.targets.shape[1:] != validation.targets.shape[1:]:
        text = "The training set needs targets like those of the validation set; add them, or leave the set out."
        raise JobFailureError(Reason.DATASET_TARGETS, text)


def _described(samples: Samples) -> str:
    held = zip(samples.input_names, samples.input_dtypes, samples.inputs, strict=True)
    return ", ".join(f"{name} {dtype} {['N', *array.shape[1:]]}".replace("'", "") for name, dtype, array in held)
