"""The metrics of whole sets, as functions of sums; every ratio without a denominator is not a number."""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.functionals import Functional, Tally
from pruning_server.evaluation.metrics import IGNORED_LABEL

# --- Tallies ----------------------------------------------------------------------------------------------------------


def tally_classes(chosen: np.ndarray, truth: np.ndarray, classes: int) -> Tally:
    """Counts by class: right, chosen, true; 3 * classes columns. Elements with the label -100 are left out.

    Args:
        chosen: [n, elements] class numbers.
        truth: likewise.
        classes: how many there are.
    """
    counted = truth != IGNORED_LABEL
    parts = [_counts(chosen, counted & (chosen == truth)), _counts(chosen, counted), _counts(truth, counted)]
    rows = np.concatenate([rows for rows, _, _ in parts])
    places = np.concatenate([labels + number * classes for number, (_, labels, _) in enumerate(parts)])
    amounts = np.concatenate([amounts for _, _, amounts in parts])
    return Tally(len(truth), 3 * classes, rows, places, amounts)


def _counts(labels: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many elements of each sample have each label: sample numbers, labels, counts."""
    if labels.shape[1] == 1:
        rows = np.flatnonzero(counted[:, 0])
        return rows, labels[rows, 0].astype(np.int64), np.ones(len(rows))
    found = [np.bincount(labels[row][counted[row]].astype(np.int64)) for row in range(len(labels))]
    occurring = [np.flatnonzero(counts) for counts in found]
    rows = np.repeat(np.arange(len(found)), [len(places) for places in occurring])
    amounts = [counts[places] for counts, places in zip(found, occurring, strict=True)]
    return rows, np.concatenate(occurring), np.concatenate(amounts).astype(np.float64)


def tally_labels(chosen: np.ndarray, truth: np.ndarray) -> Tally:
    """Counts by label of [n, labels] yes or no: right yes, chosen, true; then right answers, and all: 3 * labels + 2."""
    yes, wanted = np.asarray(chosen, bool), np.asarray(truth) > 0
    right = (yes == wanted).sum(axis=1, keepdims=True)
    total = np.full_like(right, yes.shape[1])
    return Tally.dense(np.concatenate([yes & wanted, yes, wanted, right, total], axis=1))


def tally_errors(outputs: np.ndarray, wanted: np.ndarray) -> Tally:
    """Squared errors, absolute errors and how many of each sample of [n, ...]: 3 columns."""
    errors = np.asarray(outputs, np.float64).reshape(len(outputs), -1) - np.asarray(wanted, np.float64).reshape(
        len(wanted), -1
    )
    with np.errstate(over="ignore", invalid="ignore"):
        sums = [np.square(errors).sum(axis=1), np.abs(errors).sum(axis=1), np.full(len(errors), errors.shape[1])]
    return Tally.dense(np.stack(sums, axis=1))


def tally_means(totals: np.ndarray, counts: np.ndarray | None = None) -> Tally:
    """Totals [n] and what they are divided by, 1 for each sample where `counts` [n] is None: 2 columns."""
    divisors = np.ones(len(totals)) if counts is None else counts
    return Tally.dense(np.stack([totals, divisors], axis=1))


# --- Metrics of tallies -----------------------------------------------------------------------------------------------


def mean_of(name: str, *, larger_is_better: bool = True, is_bounded: bool = True) -> Functional:
    """Of `tally_means`."""
    return Functional(name, lambda sums: sums[..., 0] / sums[..., 1], larger_is_better, is_bounded)


PERPLEXITY = Functional(
    "perplexity", lambda sums: np.exp(sums[..., 0] / sums[..., 1]), larger_is_better=False, is_bounded=False
)
RMSE = Functional("rmse", lambda sums: np.sqrt(sums[..., 0] / sums[..., 2]), larger_is_better=False, is_bounded=False)
MAE = Functional("mae", lambda sums: sums[..., 1] / sums[..., 2], larger_is_better=False, is_bounded=False)


def pooled_accuracy(name: str) -> Functional:
    """The share of all elements that are right, of `tally_classes`."""
    return Functional(name, lambda sums: _thirds(sums)[0].sum(axis=-1) / _thirds(sums)[2].sum(axis=-1))


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    right, chosen, true = _thirds(sums)
    return _mean_defined(2 * right, chosen + true)


def _mean_iou(sums: np.ndarray) -> np.ndarray:
    right, chosen, true = _thirds(sums)
    return _mean_defined(right, chosen + true - right)


def _balanced(sums: np.ndarray) -> np.ndarray:
    right, _, true = _thirds(sums)
    return _mean_defined(right, true)


def _yes_f1(sums: np.ndarray) -> np.ndarray:
    right, chosen, true = _thirds(sums)
    return np.asarray(2 * right[..., 1] / (chosen + true)[..., 1])


def _micro_f1(sums: np.ndarray) -> np.ndarray:
    right, chosen, true = _thirds(sums[..., :-2])
    return np.asarray(2 * right.sum(axis=-1) / (chosen + true).sum(axis=-1))


MACRO_F1 = Functional("macro_f1", _macro_f1)
MEAN_IOU = Functional("mean_iou", _mean_iou)
BALANCED_ACCURACY = Functional("balanced_accuracy", _balanced)
F1 = Functional("f1", _yes_f1)
LABELS_MACRO_F1 = Functional("macro_f1", lambda sums: _macro_f1(sums[..., :-2]))
LABELS_MICRO_F1 = Functional("micro_f1", _micro_f1)
LABEL_ACCURACY = Functional("label_accuracy", lambda sums: sums[..., -2] / sums[..., -1])


def _thirds(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    classes = sums.shape[-1] // 3
    return sums[..., :classes], sums[..., classes : 2 * classes], sums[..., 2 * classes :]


def _mean_defined(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The mean over the classes that occur; resampled sums are whole numbers but for rounding."""
    occurs = denominator > 0.5
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=occurs)
    return np.asarray(ratios.sum(axis=-1) / occurs.sum(axis=-1))
