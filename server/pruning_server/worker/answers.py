"""What both models answer on the report split, one by one: class by class, side changes, confidences."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch.nn import functional

from pruning_server.evaluation.calibration import Confidences, judge_calibration
from pruning_server.evaluation.churn import Answers, judge_churn
from pruning_server.evaluation.classes import MAX_LISTED_CLASSES, judge_classes
from pruning_server.evaluation.judgement import PairedValues
from pruning_server.evaluation.metrics import IGNORED_LABEL, chosen_classes
from pruning_server.evaluation.predictions import Predictions, read_predictions
from pruning_server.recovery.losses import as_logits
from pruning_server.recovery.objective import Link, Objective
from pruning_server.spec.report_accuracy import AccuracySection, CalibrationSection
from pruning_server.spec.request import Loss, Task
from pruning_server.worker.judging import Judging, blocks_of
from pruning_server.worker.others import PairedOutputs

# Of images with more pixels in all, the same random places of each are looked at.
MAX_ELEMENTS = 4_000_000
MAX_CONFIDENCES = 100_000
_CLASS_TASKS = frozenset(
    {Task.CLASSIFICATION, Task.SEGMENTATION, Task.SEQUENCE_LABELLING, Task.LANGUAGE_MODELLING, Task.MULTILABEL}
)


@dataclass(frozen=True)
class _Elements:
    """Both models' class numbers [n, k] and the truth, at `places` [k] of each sample's elements, of `of` in all."""

    target: np.ndarray
    original: np.ndarray
    pruned: np.ndarray
    places: np.ndarray
    of: int


def detail_accuracy(
    section: AccuracySection, judging: Judging, outputs: PairedOutputs, values: PairedValues, *, seed: int
) -> AccuracySection:
    """Returns the section with classes, changed samples and calibration, as far as the task has them.

    Args:
        section: what `judge_accuracy` made of `values`.
        judging: how the models were judged.
        outputs: both models' of the report split.
        values: metric and loss of each of its samples.
        seed: of the resampling.
    """
    elements = _read_elements(judging, outputs, seed)
    level, predictions = section.confidence_level, None
    if elements is not None:
        is_multilabel = judging.objective.task is Task.MULTILABEL
        predictions = read_predictions(elements.target, elements.original, elements.pruned, of_labels=is_multilabel)
    churn = judge_churn(
        values,
        outputs.rows,
        is_binary=section.right_to_wrong is not None,
        answers=_answers(judging, outputs, predictions),
        agreement=_agreement(predictions),
    )
    if elements is None or predictions is None or not len(predictions.target):
        note = "The task has no classes." if elements is None else "No element of the report split counts."
        return msgspec.structs.replace(section, churn=churn, classes_note=note)
    classes = judge_classes(predictions, confidence_level=level, seed=seed, units=outputs.units)
    return msgspec.structs.replace(
        section,
        churn=churn,
        classes=classes[:MAX_LISTED_CLASSES],
        classes_note=_note(len(classes), elements, judging),
        calibration=_calibration(judging, outputs, predictions, elements, level, seed),
    )


def _read_elements(judging: Judging, outputs: PairedOutputs, seed: int) -> _Elements | None:
    """None where nothing is chosen among classes."""
    objective = judging.objective
    if judging.metric.name == "agreement":
        chosen = chosen_classes(1, 0.0)
        original = chosen(outputs.original)
        return _Elements(original, original, chosen(outputs.pruned), np.zeros(1, np.intp), 1)
    if objective.task not in _CLASS_TASKS:
        return None
    target = judging.truth(outputs.rows, outputs.original)
    target = target.reshape(len(target), -1)
    chosen = chosen_classes(objective.class_axis, _threshold(objective))
    original, pruned = chosen(outputs.original), chosen(outputs.pruned)
    if target.shape != original.shape:
        # Shares of the classes instead of a class.
        target = target.argmax(axis=1).reshape(-1, 1)
    if objective.class_axis is None:
        target = np.where(target == IGNORED_LABEL, IGNORED_LABEL, target > 0)
    places = np.arange(target.shape[1])
    if target.size > MAX_ELEMENTS:
        count = max(1, MAX_ELEMENTS // len(target))
        places = np.sort(np.random.default_rng(seed).choice(target.shape[1], size=count, replace=False))
    return _Elements(target[:, places], original[:, places], pruned[:, places], places, target.shape[1])


def _answers(judging: Judging, outputs: PairedOutputs, predictions: Predictions | None) -> Answers:
    """One class or value per sample, where it has one."""
    unknown = np.full(len(outputs.rows), np.nan)
    if predictions is not None:
        if not predictions.one_each or predictions.of_labels:
            return Answers(unknown, unknown, unknown)
        target = unknown if judging.metric.compares_with_original else predictions.target.astype(np.float64)
        return Answers(target, predictions.original.astype(np.float64), predictions.pruned.astype(np.float64))
    if int(np.prod(outputs.original.shape[1:], dtype=np.int64)) != 1:
        return Answers(unknown, unknown, unknown)
    before, after = (values.reshape(-1).astype(np.float64) for values in (outputs.original, outputs.pruned))
    if judging.metric.compares_with_original:
        return Answers(unknown, before, after)
    return Answers(judging.truth(outputs.rows, outputs.original).reshape(-1).astype(np.float64), before, after)


def _agreement(predictions: Predictions | None) -> float | None:
    if predictions is None or not len(predictions.target):
        return None
    differs = predictions.original != predictions.pruned
    if not predictions.of_labels:
        return float(1.0 - differs.mean())
    return float(1.0 - (np.bincount(predictions.samples, weights=differs, minlength=predictions.count) > 0).mean())


def _note(count: int, elements: _Elements, judging: Judging) -> str | None:
    found = []
    if judging.metric.compares_with_original:
        found.append("Without targets, a class is what the original chooses.")
    if count > MAX_LISTED_CLASSES:
        found.append(f"{MAX_LISTED_CLASSES} of {count} classes are listed; p-values are corrected for all.")
    if len(elements.places) < elements.of:
        found.append(f"Of each sample, {len(elements.places)} of {elements.of} elements were looked at.")
    return " ".join(found) or None


def _calibration(
    judging: Judging,
    outputs: PairedOutputs,
    predictions: Predictions,
    elements: _Elements,
    confidence_level: float,
    seed: int,
) -> CalibrationSection | None:
    """None where there is no truth, or outputs were not fitted as class scores."""
    objective = judging.objective
    if judging.metric.compares_with_original or objective.loss in {Loss.MSE, Loss.L1}:
        return None
    chosen = np.arange(len(predictions.target))
    if len(chosen) > MAX_CONFIDENCES:
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), size=MAX_CONFIDENCES, replace=False))
    samples, places = predictions.samples[chosen], elements.places[predictions.places[chosen]]
    target = predictions.target[chosen]
    original, pruned = (
        Confidences.of_classes(_log_probabilities(values, samples, places, objective), target)
        for values in (outputs.original, outputs.pruned)
    )
    return judge_calibration(
        original,
        pruned,
        labels=samples if outputs.units is None else outputs.units[samples],
        scores="probabilities" if objective.link is Link.PROBABILITIES else "logits",
        confidence_level=confidence_level,
        seed=seed,
    )


def _log_probabilities(values: np.ndarray, samples: np.ndarray, places: np.ndarray, objective: Objective) -> np.ndarray:
    """[m, classes] of the elements at `places` [m] of `samples` [m], which rise, in float64."""
    axis, found = objective.class_axis, []
    for block in blocks_of(values):
        inside = slice(*np.searchsorted(samples, (block.start, block.stop)))
        part = values[block] if axis is None else np.moveaxis(values[block], axis, -1)
        part = part.reshape(len(part), -1, 1 if axis is None else part.shape[-1])
        taken = torch.from_numpy(np.ascontiguousarray(part[samples[inside] - block.start, places[inside]])).double()
        if axis is None:
            logits = as_logits(taken, Loss.BCE_WITH_LOGITS, objective.link)
            logs = torch.cat([functional.logsigmoid(-logits), functional.logsigmoid(logits)], dim=1)
        else:
            logs = as_logits(taken, Loss.CROSS_ENTROPY, objective.link).log_softmax(dim=1)
        found.append(logs.numpy())
    return np.concatenate(found)


def _threshold(objective: Objective) -> float:
    return 0.5 if objective.link is Link.PROBABILITIES else 0.0
