"""Strata: classes, or quantiles of a number, whose shares the parts of a split should all have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning_server.spec.request import Task

# A class with fewer samples than there are parts cannot be in all of them.
MIN_CLASS_SAMPLES = 3
MAX_QUANTILE_BINS = 20
MIN_BIN_SAMPLES = 10
MAX_NAMED_CLASSES = 10


@dataclass(frozen=True)
class Strata:
    """[N] int64 numbers of strata, and what people should know; `stratified` False: all samples are in one."""

    labels: np.ndarray
    stratified: bool
    warnings: tuple[str, ...] = ()


def find_strata(targets: np.ndarray | None, task: Task, count: int) -> Strata:
    """Returns the stratum of each of `count` samples.

    Class numbers are strata themselves, those with fewer than 3 samples pooled in one. Numbers of a regression are cut
    at quantiles; of several outputs per sample, the mean of the standardized ones is. Other targets are not stratified.
    """
    if targets is None or task in {Task.AGREEMENT, Task.EMBEDDING, Task.LANGUAGE_MODELLING}:
        return _one_stratum(count)
    flat = np.asarray(targets).reshape(count, -1)
    if task is Task.CLASSIFICATION:
        return _classes(flat)
    if task is Task.REGRESSION:
        return Strata(_quantiles(flat), stratified=True)
    return _one_stratum(count)


def warn_of_one_label(targets: np.ndarray | None, task: Task, rows: np.ndarray) -> tuple[str, ...]:
    """What to say where all targets are the same, or all those of `rows`, the part that is judged."""
    if targets is None or task not in {Task.CLASSIFICATION, Task.REGRESSION, Task.MULTILABEL}:
        return ()
    flat = np.asarray(targets).reshape(len(targets), -1)
    metric = "a score" if task is Task.REGRESSION else "accuracy"
    for part, where in ((flat, "of the set"), (flat[rows], "of the report part")):
        if len(part) and bool((part == part[0]).all()):
            label = ", ".join(f"{float(value):g}" for value in part[0][:MAX_NAMED_CLASSES])
            text = (
                f"all {len(part)} targets {where} are the same ({label}): a model that always answers this is never wrong,"
                f" so that {metric} says little here; send samples of every class"
            )
            return (text.replace("every class", "different targets") if task is Task.REGRESSION else text,)
    return ()


def _one_stratum(count: int) -> Strata:
    return Strata(np.zeros(count, dtype=np.int64), stratified=False)


def _classes(flat: np.ndarray) -> Strata:
    count = len(flat)
    if flat.shape[1] > 1:
        rows_are_one_hot = bool(((flat == 0) | (flat == 1)).all()) and bool((flat.sum(axis=1) == 1).all())
        if not rows_are_one_hot:
            return _one_stratum(count)
        flat = flat.argmax(axis=1).reshape(-1, 1)
    values, labels, counts = np.unique(flat[:, 0], return_inverse=True, return_counts=True)
    labels = labels.reshape(-1).astype(np.int64)
    rare = np.flatnonzero(counts < MIN_CLASS_SAMPLES)
    if not len(rare):
        return Strata(labels, stratified=True)
    labels[np.isin(labels, rare)] = len(values)
    named = ", ".join(f"{value:g}" for value in values[rare[:MAX_NAMED_CLASSES]].astype(np.float64))
    more = f" and {len(rare) - MAX_NAMED_CLASSES} more" if len(rare) > MAX_NAMED_CLASSES else ""
    warning = (
        f"{len(rare)} classes have fewer than {MIN_CLASS_SAMPLES} samples ({named}{more}); they were pooled to split the"
        " set, and nothing can be said of them one by one"
    )
    return Strata(labels, stratified=True, warnings=(warning,))


def _quantiles(flat: np.ndarray) -> np.ndarray:
    values = flat.astype(np.float64)
    if values.shape[1] > 1:
        spread = values.std(axis=0)
        values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    score = values.mean(axis=1)
    bins = int(np.clip(len(score) // MIN_BIN_SAMPLES, 1, MAX_QUANTILE_BINS))
    edges = np.quantile(score, np.linspace(0, 1, bins + 1)[1:-1])
    return np.asarray(np.searchsorted(edges, score, side="right"), dtype=np.int64)
