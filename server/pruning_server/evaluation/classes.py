"""Accuracy class by class: a loss that an average hides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pruning_server.evaluation.means import difference_of_sums
from pruning_server.evaluation.paired import Difference
from pruning_server.evaluation.predictions import Predictions
from pruning_server.evaluation.proportions import PairedProportions
from pruning_server.spec.report_accuracy import ClassDelta

# Resampling is for tables that people read; with more classes, Student's t has to do.
MAX_RESAMPLED_CLASSES = 200
CLASS_RESAMPLES = 2_000
MAX_LISTED_CLASSES = 1_000


def judge_classes(
    predictions: Predictions, *, confidence_level: float, seed: int, units: np.ndarray | None = None
) -> tuple[ClassDelta, ...]:
    """Returns every class that has samples, significant losses first, and the largest loss first among equals.

    A class's number is the share of its samples (or elements, or of the samples that have the label) that is right.
    Independent samples with one prediction each get Tango's score interval and McNemar's exact test; else whole units are
    resampled. p-values are corrected by Holm over all classes, those that are not listed too.
    Source: Holm, 1979, Scandinavian Journal of Statistics 6:65-70.

    Args:
        predictions: of the report split.
        confidence_level: of the intervals and the tests, in (0, 1).
        seed: of the resampling.
        units: [n] numbers of the groups that samples belong to; None: each is alone.
    """
    labels, found = [], []
    for label, difference, counts in _differences(predictions, seed, units):
        labels.append((label, *counts))
        found.append(difference)
    p_values = [difference.p_equal() for difference in found]
    corrected = holm(p_values)
    alpha = 1.0 - confidence_level
    rows = []
    for (label, samples, count, before), difference, p, adjusted in zip(
        labels, found, p_values, corrected, strict=True
    ):
        interval = difference.interval(confidence_level)
        rows.append(
            ClassDelta(
                label=label,
                samples=samples,
                predictions=count,
                original=before,
                pruned=before + difference.estimate,
                delta=difference.estimate,
                interval=(max(interval.low, -1.0), min(interval.high, 1.0)),
                interval_method=interval.method,
                p_value=p,
                p_corrected=adjusted,
                is_significant=adjusted < alpha,
            )
        )
    rows.sort(key=lambda row: (not (row.is_significant and row.delta < 0), row.delta, row.p_value, row.label))
    return tuple(rows)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, in the same order; at most one false alarm at the level of alpha."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def _differences(
    predictions: Predictions, seed: int, units: np.ndarray | None
) -> Iterator[tuple[int, Difference, tuple[int, int, float]]]:
    """Each class with its difference, and its samples, predictions and the original's share."""
    keys = np.where(predictions.target > 0, predictions.places, -1) if predictions.of_labels else predictions.target
    labels, starts = np.unique(np.sort(keys, kind="stable"), return_index=True)
    order, ends = np.argsort(keys, kind="stable"), [*starts[1:], len(keys)]
    right_before = predictions.original == predictions.target
    right_after = predictions.pruned == predictions.target
    resamples = CLASS_RESAMPLES if len(labels) <= MAX_RESAMPLED_CLASSES else 0
    for label, start, end in zip(labels, starts, ends, strict=True):
        rows = order[start:end]
        if label < 0:
            continue
        before, after, samples = right_before[rows], right_after[rows], predictions.samples[rows]
        several = len(np.unique(samples))
        counts = (several, len(rows), float(before.mean()))
        if units is None and several == len(rows):
            lost, gained = int((before & ~after).sum()), int((~before & after).sum())
            yield int(label), PairedProportions(lost, gained, len(rows)), counts
            continue
        of = np.unique(samples if units is None else units[samples], return_inverse=True)[1].reshape(-1)
        sums = np.bincount(of, weights=after.astype(np.float64) - before)
        sizes = np.bincount(of).astype(np.float64)
        yield int(label), difference_of_sums(sums, sizes, seed=seed, is_bounded=True, resamples=resamples), counts
