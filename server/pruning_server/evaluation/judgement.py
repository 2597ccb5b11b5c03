"""Assembles the report's verdict on generalization from both models' values, sample by sample.

Every difference is pruned - original. Nothing here looks at a sample that was fitted or selected on, except to tell how
much better the model does there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pruning_server.evaluation.paired import (
    Interval,
    mcnemar_exact,
    mean_interval,
    smallest_detectable_loss,
    tango_interval,
)
from pruning_server.spec.report import AccuracySection, GeneralizationSection
from pruning_server.spec.request import Verdict

# Fewer repeats than this do not turn samples into groups: their effect on an interval's width is below 3 %.
MAX_REPEATED_SHARE = 0.05
_CAVEATS = {
    "agreement": "Agreement looks only at the highest output of a sample; where outputs are no class scores, send targets."
}


@dataclass(frozen=True)
class PairedValues:
    """Both models on the same samples, in the same order.

    Attributes:
        original: [n] values of the metric, larger is better.
        pruned: likewise.
        original_loss: [n] losses, smaller is better; None where the task has none.
        pruned_loss: likewise.
    """

    original: np.ndarray
    pruned: np.ndarray
    original_loss: np.ndarray | None = None
    pruned_loss: np.ndarray | None = None

    @property
    def difference(self) -> float:
        """Mean of pruned - original."""
        return float(np.mean(self.pruned)) - float(np.mean(self.original))


def judge_accuracy(
    values: PairedValues,
    *,
    metric: str,
    is_binary: bool,
    confidence_level: float,
    seed: int,
    units: np.ndarray | None = None,
) -> AccuracySection:
    """Returns the accuracy section of the report split.

    Right-or-wrong metrics get Tango's score interval and McNemar's exact test; others the bootstrap. Where samples come
    in groups, groups are resampled whole, and there is no McNemar test, since it takes samples for independent.

    Args:
        values: of the report split, at least one sample.
        metric: its name.
        is_binary: whether its values are 0 or 1.
        confidence_level: of the intervals, in (0, 1).
        seed: of the resampling.
        units: [n] numbers of the groups that the samples belong to.
    """
    groups = independent_units(units)
    lost = int(((values.original > 0.5) & (values.pruned <= 0.5)).sum()) if is_binary else None
    gained = int(((values.original <= 0.5) & (values.pruned > 0.5)).sum()) if is_binary else None
    if lost is not None and gained is not None and groups is None:
        interval = tango_interval(lost, gained, len(values.original), confidence_level)
        mcnemar_p = mcnemar_exact(lost, gained)
    else:
        differences = np.asarray(values.pruned, np.float64) - np.asarray(values.original, np.float64)
        interval = mean_interval(differences, confidence_level=confidence_level, seed=seed, units=groups)
        mcnemar_p = None
    return AccuracySection(
        metric=metric,
        samples=len(values.original),
        original=float(np.mean(values.original)),
        pruned=float(np.mean(values.pruned)),
        delta=values.difference,
        interval=(interval.low, interval.high),
        interval_method=interval.method,
        confidence_level=confidence_level,
        mcnemar_p=mcnemar_p,
        right_to_wrong=lost,
        wrong_to_right=gained,
        loss=_judge_loss(values, confidence_level, seed, groups),
    )


def judge_generalization(
    report: PairedValues,
    accuracy: AccuracySection,
    *,
    margin: float,
    identical_outputs: bool,
    fit: PairedValues | None = None,
    train: PairedValues | None = None,
    units: np.ndarray | None = None,
) -> GeneralizationSection:
    """Returns the generalization section.

    `gap_*`: metric on the training set minus on the report split; positive: the model generalizes worse than it fits.
    `recovery_overfit`: (pruned - original on fit) - (pruned - original on report); positive: what the recovery won on
    the samples it was fitted on, it did not win on others.

    Args:
        report: of the report split.
        accuracy: what `judge_accuracy` made of it.
        margin: the largest acceptable loss of the metric, in (0, 1).
        identical_outputs: whether both models gave the same outputs for every sample of the report split.
        fit: of the samples that the recovery was fitted on; None where nothing was fitted.
        train: of the caller's training set; None where none was sent.
        units: [n] numbers of the groups that the samples of the report split belong to.
    """
    verdict = decide(accuracy.interval, margin, identical_outputs=identical_outputs)
    differences = np.asarray(report.pruned, np.float64) - np.asarray(report.original, np.float64)
    detectable = smallest_detectable_loss(differences, accuracy.confidence_level, independent_units(units))
    overfit = None if fit is None else fit.difference - report.difference
    sentences = [
        _change(accuracy),
        _reading(verdict, margin, identical_outputs=identical_outputs),
        _power(accuracy.samples, detectable, margin) if verdict is not Verdict.FAIL and not identical_outputs else "",
        _overfit(overfit, margin),
        _CAVEATS.get(accuracy.metric, ""),
    ]
    return GeneralizationSection(
        gap_original=None if train is None else float(np.mean(train.original)) - float(np.mean(report.original)),
        gap_pruned=None if train is None else float(np.mean(train.pruned)) - float(np.mean(report.pruned)),
        recovery_overfit=overfit,
        verdict=verdict,
        margin=margin,
        smallest_detectable_loss=detectable if np.isfinite(detectable) else None,
        explanation=" ".join(sentence for sentence in sentences if sentence),
    )


def decide(interval: tuple[float, float], margin: float, *, identical_outputs: bool) -> Verdict:
    """The rule of non-inferiority: PASS if the interval excludes a loss of the margin, FAIL if it holds only larger ones.

    Models with identical outputs pass, however few samples there are.
    """
    low, high = interval
    if identical_outputs or low > -margin:
        return Verdict.PASS
    return Verdict.FAIL if high < -margin else Verdict.INCONCLUSIVE


def independent_units(units: np.ndarray | None) -> np.ndarray | None:
    """Returns the units where enough samples share one to matter for an interval, else None: samples are independent."""
    if units is None or not len(units):
        return None
    repeated = len(units) - len(np.unique(units))
    return units if repeated > MAX_REPEATED_SHARE * len(units) else None


def _judge_loss(values: PairedValues, confidence_level: float, seed: int, units: np.ndarray | None) -> dict[str, Any]:
    """Keys: original, pruned, delta, interval, interval_method; None where there is no finite loss."""
    empty: dict[str, Any] = dict.fromkeys(("original", "pruned", "delta", "interval", "interval_method"))
    if values.original_loss is None or values.pruned_loss is None:
        return empty
    original, pruned = np.asarray(values.original_loss, np.float64), np.asarray(values.pruned_loss, np.float64)
    differences = pruned - original
    means = {
        "original": _finite(original.mean()),
        "pruned": _finite(pruned.mean()),
        "delta": _finite(differences.mean()),
    }
    if not np.isfinite(differences).all():
        return empty | means
    interval: Interval = mean_interval(
        differences, confidence_level=confidence_level, seed=seed, units=units, is_bounded=False
    )
    return means | {"interval": [interval.low, interval.high], "interval_method": interval.method}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _change(accuracy: AccuracySection) -> str:
    low, high = accuracy.interval
    return (
        f"On {accuracy.samples} samples that were neither fitted nor selected on, {accuracy.metric} went from"
        f" {accuracy.original:.4f} to {accuracy.pruned:.4f}: {accuracy.delta:+.4f},"
        f" {accuracy.confidence_level:.0%} interval {low:+.4f} to {high:+.4f}."
    )


def _reading(verdict: Verdict, margin: float, *, identical_outputs: bool) -> str:
    if identical_outputs:
        return "Both models give the same outputs for every one of them."
    return {
        Verdict.PASS: f"A loss of the margin {margin:g} or more is ruled out.",
        Verdict.FAIL: f"The loss is larger than the margin {margin:g}.",
        Verdict.INCONCLUSIVE: f"Whether the loss stays within the margin {margin:g} cannot be told.",
    }[verdict]


def _power(samples: int, detectable: float, margin: float) -> str:
    if detectable <= margin:
        return ""
    if not np.isfinite(detectable):
        return "One independent group of samples says nothing of others: send more groups."
    needed = int(np.ceil(samples * (detectable / margin) ** 2))
    return (
        f"So few samples reliably show only a loss of {detectable:.3g} and more; about {needed} samples in the report"
        " split would show one of the margin."
    )


def _overfit(overfit: float | None, margin: float) -> str:
    if overfit is None or overfit <= margin:
        return ""
    return f"The recovery won {overfit:.4f} more on the samples it was fitted on than on these: it overfits."
