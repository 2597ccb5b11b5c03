"""The further metrics of a task: what the two models' outputs on the report split add to each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from pruning_server.evaluation import retrieval, set_metrics
from pruning_server.evaluation.functionals import Functional, Tally, judge_functionals
from pruning_server.evaluation.metrics import chosen_classes
from pruning_server.recovery.losses import BuiltinLoss, ElementLoss, as_logits
from pruning_server.recovery.objective import IGNORED_LABEL, Link, Objective, TargetForm
from pruning_server.spec.report_accuracy import NamedNumber
from pruning_server.spec.request import Loss, Task
from pruning_server.worker.judging import Judging, blocks_of

TOP = 5
# A top-5 accuracy of few classes says little; counts of too many classes take too much memory.
MIN_TOP_CLASSES, MAX_CLASSES = 11, 1_000
PROBABILITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PairedOutputs:
    """Both models' outputs [n, ...] for `rows` of the judged set, whose `units` [n] are resampled whole; None: each alone."""

    rows: np.ndarray
    original: np.ndarray
    pruned: np.ndarray
    units: np.ndarray | None


@dataclass(frozen=True)
class _Measured:
    """Metrics of one kind of tally, both models', over the samples at `kept` of [n]; None: all."""

    functionals: Sequence[Functional]
    original: Tally
    pruned: Tally
    kept: np.ndarray | None = None


def judge_others(
    judging: Judging, outputs: PairedOutputs, *, confidence_level: float, seed: int
) -> tuple[NamedNumber, ...]:
    """Returns the task's further metrics with the intervals of their differences; see `docs/tasks.md` for their list."""
    found: list[NamedNumber] = []
    for measured in _MEASURES[judging.objective.task](judging, outputs):
        units = outputs.units
        if units is not None and measured.kept is not None:
            units = units[measured.kept]
        found += judge_functionals(
            measured.functionals,
            measured.original,
            measured.pruned,
            confidence_level=confidence_level,
            seed=seed,
            units=units,
        )
    return tuple(found)


def _both(functionals: Sequence[Functional], outputs: PairedOutputs, tally: Callable[[np.ndarray], Tally]) -> _Measured:
    return _Measured(functionals, tally(outputs.original), tally(outputs.pruned))


# --- Tasks ------------------------------------------------------------------------------------------------------------


def _classification(judging: Judging, outputs: PairedOutputs) -> Iterator[_Measured]:
    objective, truth = judging.objective, _rows(judging.truth(outputs.rows, outputs.original))
    classes = objective.classes or 2
    chosen = chosen_classes(objective.class_axis, _threshold(objective))
    metrics = [set_metrics.MACRO_F1, set_metrics.BALANCED_ACCURACY, *((set_metrics.F1,) if classes == 2 else ())]
    if classes <= MAX_CLASSES:
        yield _both(
            metrics, outputs, lambda values: set_metrics.tally_classes(chosen(values), truth.astype(np.int64), classes)
        )
    yield from _top(outputs, truth[:, 0], classes)


def _top(outputs: PairedOutputs, truth: np.ndarray, classes: int) -> Iterator[_Measured]:
    """Whether the true class is among the five highest."""
    if classes < MIN_TOP_CLASSES:
        return

    def hits(values: np.ndarray) -> Tally:
        found = np.concatenate(
            [np.argsort(-values[block], axis=1, kind="stable")[:, :TOP] for block in blocks_of(values)]
        )
        return set_metrics.tally_means((found == truth[:, None]).any(axis=1).astype(np.float64))

    yield _both([set_metrics.mean_of(f"top_{TOP}_accuracy")], outputs, hits)


def _multilabel(judging: Judging, outputs: PairedOutputs) -> Iterator[_Measured]:
    truth = _rows(judging.truth(outputs.rows, outputs.original))
    threshold = _threshold(judging.objective)
    metrics = [set_metrics.LABELS_MACRO_F1, set_metrics.LABELS_MICRO_F1, set_metrics.LABEL_ACCURACY]
    if truth.shape[1] <= MAX_CLASSES:
        yield _both(metrics, outputs, lambda values: set_metrics.tally_labels(_rows(values) > threshold, truth))


def _regression(judging: Judging, outputs: PairedOutputs) -> Iterator[_Measured]:
    truth = judging.truth(outputs.rows, outputs.original)
    metrics = [set_metrics.RMSE, set_metrics.MAE]
    yield _both(metrics, outputs, lambda values: set_metrics.tally_errors(values, truth))


def _segmentation(judging: Judging, outputs: PairedOutputs) -> Iterator[_Measured]:
    yield from _of_elements(
        judging, outputs, [set_metrics.MEAN_IOU, set_metrics.pooled_accuracy("pixel_accuracy"), set_metrics.MACRO_F1]
    )


def _sequence_labelling(judging: Judging, outputs: PairedOutputs) -> Iterator[_Measured]:
    metrics = [set_metrics.pooled_accuracy("token_accuracy"), set_metrics.MACRO_F1]
    yield from _of_elements(judging, outputs, metrics)


def _language_modelling(judging: Judging, outputs: PairedOutputs) -> Iterator[_Measured]:
    truth = judging.truth(outputs.rows, outputs.original)
    yield _both([set_metrics.PERPLEXITY], outputs, lambda values: _nll(judging, values, truth))
    if judging.objective.form is not TargetForm.ELEMENTS:
        yield from _top(outputs, truth, judging.objective.classes or 2)
        return
    wanted = _rows(truth)
    chosen = chosen_classes(judging.objective.class_axis, 0.0)

    def right(values: np.ndarray) -> Tally:
        counted = wanted != IGNORED_LABEL
        hits = (chosen(values) == wanted) & counted
        return set_metrics.tally_means(hits.sum(axis=1).astype(np.float64), counted.sum(axis=1).astype(np.float64))

    yield _both([set_metrics.mean_of("token_accuracy")], outputs, right)


def _embedding(judging: Judging, outputs: PairedOutputs) -> Iterator[_Measured]:
    kept = retrieval.gallery_rows(len(outputs.rows))
    count = min(retrieval.NEIGHBOURS, len(kept) - 1)
    if count < 1:
        return
    original, pruned = (retrieval.nearest(values[kept], count) for values in (outputs.original, outputs.pruned))
    same = set_metrics.tally_means(np.ones(len(kept)))
    shared = set_metrics.tally_means(retrieval.overlap(original, pruned))
    yield _Measured([set_metrics.mean_of(f"neighbour_overlap_at_{count}")], same, shared, kept)
    recall = set_metrics.mean_of(f"recall_at_{count}")
    labels = _labels(judging, outputs.rows[kept])
    if labels is None:
        found = set_metrics.tally_means(retrieval.recalls(pruned, original[:, 0]))
        yield _Measured([recall], same, found, kept)
        return
    before, after = (set_metrics.tally_means(*retrieval.recalls_label(found, labels)) for found in (original, pruned))
    yield _Measured([recall], before, after, kept)


def _agreement(_: Judging, outputs: PairedOutputs) -> Iterator[_Measured]:
    metrics = [
        Functional("rmse_to_original", set_metrics.RMSE.value, larger_is_better=False, is_bounded=False),
        Functional("mae_to_original", set_metrics.MAE.value, larger_is_better=False, is_bounded=False),
    ]
    if outputs.original.ndim == 2 and outputs.original.shape[1] >= 2:
        divergence = set_metrics.mean_of("kl_divergence", larger_is_better=False, is_bounded=False)
        nothing = set_metrics.tally_means(np.zeros(len(outputs.rows)))
        yield _Measured([divergence], nothing, set_metrics.tally_means(_divergences(outputs)))
    yield _both(metrics, outputs, lambda values: set_metrics.tally_errors(values, outputs.original))


_MEASURES: dict[Task, Callable[[Judging, PairedOutputs], Iterator[_Measured]]] = {
    Task.CLASSIFICATION: _classification,
    Task.MULTILABEL: _multilabel,
    Task.REGRESSION: _regression,
    Task.SEGMENTATION: _segmentation,
    Task.SEQUENCE_LABELLING: _sequence_labelling,
    Task.LANGUAGE_MODELLING: _language_modelling,
    Task.EMBEDDING: _embedding,
    Task.AGREEMENT: _agreement,
}


# --- What samples add -------------------------------------------------------------------------------------------------


def _of_elements(judging: Judging, outputs: PairedOutputs, metrics: Sequence[Functional]) -> Iterator[_Measured]:
    objective, truth = judging.objective, _rows(judging.truth(outputs.rows, outputs.original))
    chosen, classes = chosen_classes(objective.class_axis, _threshold(objective)), objective.classes or 2
    if classes <= MAX_CLASSES:
        yield _both(
            metrics, outputs, lambda values: set_metrics.tally_classes(chosen(values), truth.astype(np.int64), classes)
        )


def _nll(judging: Judging, values: np.ndarray, truth: np.ndarray) -> Tally:
    """Negative log-likelihoods of the tokens of each document and their number, whatever loss was fitted."""
    objective = judging.objective
    totals, counts = [], []
    for block in blocks_of(values):
        output, wanted = torch.from_numpy(np.ascontiguousarray(values[block])), torch.from_numpy(truth[block])
        if objective.form is TargetForm.ELEMENTS:
            losses, counted = ElementLoss(objective.class_axis, objective.link).per_element(output, wanted)
        else:
            losses = BuiltinLoss(Loss.CROSS_ENTROPY, objective.link).per_sample(output, wanted)[:, None]
            counted = torch.ones_like(losses, dtype=torch.bool)
        totals.append(losses.double().sum(dim=1).numpy())
        counts.append(counted.sum(dim=1).double().numpy())
    return set_metrics.tally_means(np.concatenate(totals), np.concatenate(counts))


def _divergences(outputs: PairedOutputs) -> np.ndarray:
    """[n] Kullback-Leibler divergences of the pruned model's distribution over classes from the original's, in nats."""
    link = Link.PROBABILITIES if _are_distributions(outputs.original) else Link.IDENTITY
    original, pruned = (
        as_logits(torch.from_numpy(np.ascontiguousarray(values)).double(), Loss.CROSS_ENTROPY, link).log_softmax(dim=1)
        for values in (outputs.original, outputs.pruned)
    )
    found = functional.kl_div(pruned, original, reduction="none", log_target=True).nan_to_num(nan=0.0).sum(dim=1)
    return found.clamp_min(0.0).numpy()


def _are_distributions(values: np.ndarray) -> bool:
    sums = values.astype(np.float64).sum(axis=1)
    return bool((values >= 0).all()) and bool((np.abs(sums - 1) < PROBABILITY_TOLERANCE).all())


def _labels(judging: Judging, rows: np.ndarray) -> np.ndarray | None:
    """[n] class numbers of the samples, where the set has one for each."""
    targets = judging.feed.samples.targets
    if targets is None or targets.dtype.kind not in "iub" or int(np.prod(targets.shape[1:], dtype=np.int64)) != 1:
        return None
    return np.asarray(targets[rows]).reshape(len(rows))


def _threshold(objective: Objective) -> float:
    return 0.5 if objective.link is Link.PROBABILITIES else 0.0


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)
