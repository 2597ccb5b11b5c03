"""What the observed output and the stored targets look like, as the choice of task and loss needs it."""

from __future__ import annotations

import numpy as np
import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.objective import (
    IGNORED_BYTE,
    IGNORED_LABEL,
    Objective,
    OutputFacts,
    TargetFacts,
    TargetForm,
)
from pruning_server.spec.request import Task
from pruning_server.worker.feeding import Samples
from pruning_server.worker.next_tokens import NextTokens

BLOCK_ROWS = 4096
DISTRIBUTION_TOLERANCE = 1e-3
# With fewer observed numbers, logits could lie in [0, 1] by chance.
MIN_UNIT_INTERVAL_VALUES = 32


def output_facts(output: torch.Tensor) -> OutputFacts:
    """Facts of observed outputs [n, ...]."""
    values = output.detach().double()
    in_unit = bool(((values >= 0) & (values <= 1)).all()) and values.numel() >= MIN_UNIT_INTERVAL_VALUES
    axes = range(1, values.ndim) if bool((values >= 0).all()) else ()
    return OutputFacts(
        dtype=str(output.dtype).removeprefix("torch."),
        shape=tuple(output.shape[1:]),
        distribution_axes=tuple(axis for axis in axes if values.shape[axis] >= 2 and _adds_up(values, axis)),
        in_unit_interval=in_unit,
    )


def _adds_up(values: torch.Tensor, axis: int) -> bool:
    return bool(((values.sum(dim=axis) - 1).abs() < DISTRIBUTION_TOLERANCE).all())


def target_facts(targets: np.ndarray | None) -> TargetFacts | None:
    """Facts of stored targets [N, ...], read in blocks."""
    if targets is None:
        return None
    wide = targets.ndim == 2 and targets.shape[1] >= 2
    integral, binary, ignoring, one_hot, distributions = True, True, True, wide, wide
    axes = {axis for axis in (1, targets.ndim - 1) if targets.ndim >= 3 and targets.shape[axis] >= 2}
    for start in range(0, len(targets), BLOCK_ROWS):
        block = np.asarray(targets[start : start + BLOCK_ROWS])
        binary = binary and bool(((block == 0) | (block == 1)).all())
        ignoring = ignoring and (binary or bool(np.isin(block, (0, 1, IGNORED_LABEL, IGNORED_BYTE)).all()))
        one_hot = one_hot and binary and bool((block.sum(axis=1) == 1).all())
        axes = {axis for axis in axes if binary and bool((block.sum(axis=axis) == 1).all())}
        distributions = distributions and bool((block >= 0).all()) and _rows_add_up(block)
        integral = integral and (targets.dtype.kind != "f" or bool((block == np.round(block)).all()))
        if not (ignoring or integral or distributions):
            break
    return TargetFacts(
        dtype=str(targets.dtype),
        shape=tuple(targets.shape[1:]),
        integer=targets.dtype.kind in "iub",
        integral=integral,
        binary=binary,
        one_hot=binary and one_hot,
        distributions=distributions,
        binary_or_ignored=ignoring,
        one_hot_axes=tuple(sorted(axes)),
    )


def _rows_add_up(block: np.ndarray) -> bool:
    return bool((np.abs(block.astype(np.float64).sum(axis=1) - 1) < DISTRIBUTION_TOLERANCE).all())


def check_labels(samples: Samples, objective: Objective, tokens: NextTokens | None = None) -> tuple[str, ...]:
    """Refuses class numbers that the model has no output for; returns what people should know of those that do not count.

    Raises:
        JobFailureError: DATASET_LABEL_OUT_OF_RANGE, naming the value, its place and the number of classes, or
            DATASET_TARGETS: no element counts.
    """
    labelled = objective.form in {TargetForm.LABELS, TargetForm.ELEMENTS} and objective.task is not Task.AGREEMENT
    if not labelled or objective.classes is None:
        return ()
    empty = 0
    for start in range(0, len(samples), BLOCK_ROWS):
        rows = range(start, min(start + BLOCK_ROWS, len(samples)))
        block = _labels(samples, rows, objective, tokens).reshape(len(rows), -1)
        ignored = np.isin(block, objective.ignored)
        wrong = ~ignored & ((block < 0) | (block >= objective.classes))
        if wrong.any():
            row, place = (int(found[0]) for found in np.nonzero(wrong))
            raise _out_of_range(
                samples, objective, start + row, place if block.shape[1] > 1 else None, block[row, place]
            )
        empty += int(ignored.all(axis=1).sum())
    if empty == len(samples):
        text = f"No element of the {samples.name} set's targets counts: all are {_named(objective.ignored)}."
        raise JobFailureError(Reason.DATASET_TARGETS, text)
    if not empty:
        return ()
    return (
        f"{empty} samples of the {samples.name} set have no element that counts; they say nothing of either model.",
    )


def _labels(samples: Samples, rows: range, objective: Objective, tokens: NextTokens | None) -> np.ndarray:
    if objective.next_tokens and tokens is not None:
        return tokens.targets(samples, rows)
    return (
        np.asarray(samples.targets[rows.start : rows.stop]) if samples.targets is not None else np.zeros((len(rows), 1))
    )


def _out_of_range(
    samples: Samples, objective: Objective, row: int, place: int | None, label: np.generic
) -> JobFailureError:
    where = f"targets[{row}]" if place is None else f"targets[{row}], element {place},"
    if objective.next_tokens:
        where = f"the token at place {(place or 0) + 1} of sample {row}"
    value, classes = int(label), objective.classes or 0
    text = (
        f"{where} of the {samples.name} set is {value}; the model has {classes} classes, so labels run from 0 to "
        f"{classes - 1}{f', or are {_named(objective.ignored)} where they do not count' if objective.ignored else ''}."
    )
    metadata = {"row": str(row), "label": str(value), "classes": str(classes)}
    return JobFailureError(Reason.DATASET_LABEL_OUT_OF_RANGE, text, metadata=metadata)


def _named(labels: tuple[int, ...]) -> str:
    return " or ".join(map(str, labels))


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
    needless = objective.form is TargetForm.NONE or objective.next_tokens or objective.task is Task.AGREEMENT
    if needless or validation.targets is None:
        return
    if train.targets is None or train.targets.shape[1:] != validation.targets.shape[1:]:
        text = "The training set needs targets like those of the validation set; add them, or leave the set out."
        raise JobFailureError(Reason.DATASET_TARGETS, text)


def _described(samples: Samples) -> str:
    held = zip(samples.input_names, samples.input_dtypes, samples.inputs, strict=True)
    return ", ".join(f"{name} {dtype} {['N', *array.shape[1:]]}".replace("'", "") for name, dtype, array in held)
