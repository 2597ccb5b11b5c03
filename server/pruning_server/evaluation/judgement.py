"""Assembles the report's verdict on generalization from both models' values, sample by sample.

Every difference is pruned - original. Nothing here looks at a sample that was fitted or selected on, except to tell how
much better the model does there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pruning_server.evaluation import wording
from pruning_server.evaluation.numbers import paired_number
from pruning_server.evaluation.paired import (
    Difference,
    compare,
    interval_between_sets,
    mean_difference,
    smallest_detectable_loss,
)
from pruning_server.spec.report_accuracy import (
    AccuracySection,
    EpochPoint,
    GeneralizationSection,
    NonInferioritySection,
    PairedNumber,
)
from pruning_server.spec.request import Verdict

# Fewer repeats than this do not turn samples into groups: their effect on an interval's width is below 3 %.
MAX_REPEATED_SHARE = 0.05


@dataclass(frozen=True)
class PairedValues:
    """Both models on the same samples, in the same order.

    Attributes:
        original: [n] values of the metric, larger is better.
        pruned: likewise.
        original_loss: [n] losses, smaller is better; None where the task has none.
        pruned_loss: likewise.
        units: [n] numbers of the groups that samples belong to; None: each is alone.
    """

    original: np.ndarray
    pruned: np.ndarray
    original_loss: np.ndarray | None = None
    pruned_loss: np.ndarray | None = None
    units: np.ndarray | None = None

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

    Right-or-wrong metrics get Tango's score interval and McNemar's exact test; others the studentized bootstrap. Where
    samples come in groups, groups are resampled whole, and there is no McNemar test, since it takes samples for independent.

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
    found = compare(values.original, values.pruned, is_binary=is_binary, seed=seed, units=groups)
    interval = found.interval(confidence_level)
    return AccuracySection(
        metric=metric,
        samples=len(values.original),
        original=float(np.mean(values.original)),
        pruned=float(np.mean(values.pruned)),
        delta=values.difference,
        interval=(interval.low, interval.high),
        interval_method=interval.method,
        confidence_level=confidence_level,
        mcnemar_p=found.p_equal() if is_binary and groups is None else None,
        right_to_wrong=lost,
        wrong_to_right=gained,
        loss=_judge_loss(values, confidence_level, seed, groups),
        units=len(values.original) if groups is None else len(np.unique(groups)),
    )


def judge_generalization(  # noqa: PLR0913 - what a verdict rests on, each by its name
    report: PairedValues,
    accuracy: AccuracySection,
    *,
    margin: float,
    identical_outputs: bool,
    fit: PairedValues | None = None,
    train: PairedValues | None = None,
    units: np.ndarray | None = None,
    curves: Sequence[EpochPoint] = (),
    seed: int = 0,
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
        curves: losses by epoch of fine-tuning.
        seed: of the resampling, as for `judge_accuracy`.
    """
    groups, level = independent_units(units), accuracy.confidence_level
    found = compare(report.original, report.pruned, is_binary=_is_binary(accuracy), seed=seed, units=groups)
    verdict = decide(accuracy.interval, margin, identical_outputs=identical_outputs)
    differences = np.asarray(report.pruned, np.float64) - np.asarray(report.original, np.float64)
    detectable = smallest_detectable_loss(differences, level, groups)
    gap_change, gap_interval = _between(train, found, accuracy, seed)
    overfit, overfit_interval = _between(fit, found, accuracy, seed)
    lacking = verdict is not Verdict.FAIL and not identical_outputs and detectable > margin
    needed = wording.needed_samples(accuracy.samples, detectable, margin) if lacking else None
    warning = wording.overfit(overfit, overfit_interval, level, margin, curves)
    sentences = [
        wording.change(accuracy),
        wording.reading(verdict, margin, identical_outputs=identical_outputs),
        wording.power(detectable, needed) if lacking else "",
        warning or "",
        wording.CAVEATS.get(accuracy.metric, ""),
    ]
    return GeneralizationSection(
        gap_original=None if train is None else float(np.mean(train.original)) - float(np.mean(report.original)),
        gap_pruned=None if train is None else float(np.mean(train.pruned)) - float(np.mean(report.pruned)),
        gap_change=gap_change,
        gap_change_interval=gap_interval,
        gap_note=wording.NO_TRAINING_SET if train is None else None,
        recovery_overfit=overfit,
        recovery_overfit_interval=overfit_interval,
        overfit_warning=warning,
        verdict=verdict,
        verdict_sentence=wording.verdict(verdict, accuracy, margin, identical_outputs=identical_outputs),
        margin=margin,
        smallest_detectable_loss=detectable if np.isfinite(detectable) else None,
        needed_samples=needed,
        non_inferiority=_non_inferiority(found, verdict, margin, level, identical_outputs=identical_outputs),
        explanation=" ".join(sentence for sentence in sentences if sentence),
        curves=tuple(curves),
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


def _judge_loss(values: PairedValues, confidence_level: float, seed: int, units: np.ndarray | None) -> PairedNumber:
    if values.original_loss is None or values.pruned_loss is None:
        return PairedNumber()
    original, pruned = np.asarray(values.original_loss, np.float64), np.asarray(values.pruned_loss, np.float64)
    with np.errstate(invalid="ignore"):
        differences = pruned - original
        delta = float(differences.mean())
    interval = None
    if np.isfinite(differences).all():
        found = mean_difference(differences, seed=seed, units=units, is_bounded=False)
        interval = found.interval(confidence_level)
    return paired_number(float(original.mean()), float(pruned.mean()), delta, interval)


def _is_binary(accuracy: AccuracySection) -> bool:
    return accuracy.right_to_wrong is not None


def _between(
    other: PairedValues | None, report: Difference, accuracy: AccuracySection, seed: int
) -> tuple[float | None, tuple[float, float] | None]:
    """How much more was gained on another set than on the report split, and its interval."""
    if other is None:
        return None, None
    units = independent_units(other.units)
    found = compare(other.original, other.pruned, is_binary=_is_binary(accuracy), seed=seed, units=units)
    level = accuracy.confidence_level
    interval = interval_between_sets(
        (other.difference, found.interval(level)), (report.estimate, report.interval(level))
    )
    return other.difference - accuracy.delta, interval


def _non_inferiority(
    found: Difference, verdict: Verdict, margin: float, level: float, *, identical_outputs: bool
) -> NonInferioritySection:
    return NonInferioritySection(
        margin=margin,
        p_value=None if identical_outputs else found.p_at_most(-margin),
        alpha=(1.0 - level) / 2.0,
        method="identical outputs" if identical_outputs else found.method,
        is_shown=verdict is Verdict.PASS,
    )
