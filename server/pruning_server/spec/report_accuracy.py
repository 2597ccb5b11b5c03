"""The report's parts on accuracy and generalization: what both models get right, how sure of it they are, where they differ.

Every delta is pruned - original; every interval is of the delta, at the section's `confidence_level`.
"""

from __future__ import annotations

import msgspec

from pruning_server.spec.base import Value
from pruning_server.spec.request import Verdict


class PairedNumber(Value, frozen=True, kw_only=True):
    """One number of both models on the same samples; None where it is not defined or not finite."""

    original: float | None = None
    pruned: float | None = None
    delta: float | None = None
    interval: tuple[float, float] | None = None
    interval_method: str | None = None


class NamedNumber(PairedNumber, frozen=True, kw_only=True):
    """A further metric of the task by its name; `larger_is_better` tells which sign of the delta is a loss."""

    name: str
    larger_is_better: bool = True


class ReliabilityBin(Value, frozen=True, kw_only=True):
    """Predictions of similar confidence: between `low` and `high`, their mean confidence, and the share that is right."""

    low: float
    high: float
    predictions: int
    confidence: float
    accuracy: float


class Reliability(Value, frozen=True, kw_only=True):
    """Both models' reliability diagrams: bins of equally many predictions, least confident first."""

    original: tuple[ReliabilityBin, ...]
    pruned: tuple[ReliabilityBin, ...]


class CalibrationSection(Value, frozen=True, kw_only=True):
    """Whether confidences are as high as the share that is right; smaller is better for all three.

    Attributes:
        predictions: how many confidences were looked at: samples, or their elements where each has one of its own.
        bins: of equal mass, of `ece` and `reliability`.
        ece: expected calibration error, in [0, 1].
        nll: negative log-likelihood of the targets, in nats per prediction.
        brier: squared error of the probabilities, summed over the classes, in [0, 2]; of two classes, that of one, in [0, 1].
        scores: what the model's outputs were taken for: `logits` (log-probabilities too) or `probabilities`.
    """

    predictions: int
    bins: int
    ece: PairedNumber
    nll: PairedNumber
    brier: PairedNumber
    reliability: Reliability
    scores: str


class ClassDelta(Value, frozen=True, kw_only=True):
    """One class: the share of its samples (or elements) that is right.

    Attributes:
        label: number of the class, or of the label where a sample has several.
        samples: of the report split that have this class; `predictions`: elements, where a sample has several.
        p_value: two-sided, that the models are equally right on it; `p_corrected`: by Holm over all classes.
        is_significant: whether `p_corrected` is below 1 - confidence level.
    """

    label: int
    samples: int
    predictions: int
    original: float
    pruned: float
    delta: float
    interval: tuple[float, float]
    interval_method: str
    p_value: float
    p_corrected: float
    is_significant: bool


class ChangedSample(Value, frozen=True, kw_only=True):
    """A sample that the two models see differently, worst first.

    Attributes:
        row: in the caller's validation set, from 0.
        target: class number or value, None where a sample has several or none; `original`, `pruned`: likewise, predicted.
        change: `right_to_wrong`, `wrong_to_right` or `worse` (right in parts, or a number).
        loss_change: of its loss, pruned - original; None where there is none.
        thumbnail: PNG in base64, None where inputs are no images.
    """

    row: int
    target: float | int | None
    original: float | int | None
    pruned: float | int | None
    change: str
    loss_change: float | None = None
    thumbnail: str | None = None


class ChurnSection(Value, frozen=True, kw_only=True):
    """Samples that change sides, which an accuracy hides where they cancel.

    Attributes:
        right_to_wrong: rows of the caller's validation set, largest growth of the loss first; None where a sample is
            neither right nor wrong. At most 1,000 are listed; the counts are in `accuracy`.
        wrong_to_right: rows, likewise, largest drop of the loss first.
        right_to_wrong_share: of all samples, in [0, 1]; `wrong_to_right_share` likewise.
        agreement: share of samples for which both models predict the same, right or wrong; None where nothing is chosen.
        samples: the worst ones, at most 24.
    """

    right_to_wrong: tuple[int, ...] | None = None
    wrong_to_right: tuple[int, ...] | None = None
    right_to_wrong_share: float | None = None
    wrong_to_right_share: float | None = None
    agreement: float | None = None
    samples: tuple[ChangedSample, ...] = ()


class AccuracySection(Value, frozen=True, kw_only=True):
    """The task's metric on the report split; delta = pruned - original; interval of the delta.

    Attributes:
        units: independent units among the samples: groups and duplicates count once; None in reports before 1.1.
        others: further metrics of the task.
        classes: largest loss first; empty where the task has none. `classes_note`: what was left out, and why.
        calibration: None where outputs are no class scores.
    """

    metric: str
    samples: int
    original: float
    pruned: float
    delta: float
    interval: tuple[float, float]
    interval_method: str
    confidence_level: float
    mcnemar_p: float | None
    right_to_wrong: int | None
    wrong_to_right: int | None
    loss: PairedNumber
    units: int | None = None
    others: tuple[NamedNumber, ...] = ()
    classes: tuple[ClassDelta, ...] = ()
    classes_note: str | None = None
    calibration: CalibrationSection | None = None
    churn: ChurnSection | None = None


class NonInferioritySection(Value, frozen=True, kw_only=True):
    """The one-sided test that the loss is smaller than the margin.

    Attributes:
        margin: of the metric.
        p_value: how likely at least this good a result is if the loss were the margin; None where nothing was seen to
            vary, so that there is no test.
        alpha: (1 - confidence level) / 2; below it, `is_shown`.
        method: of the test.
        is_shown: whether the loss is smaller than the margin; True without a test where all outputs are identical.
    """

    margin: float
    p_value: float | None
    alpha: float
    method: str
    is_shown: bool


class EpochPoint(Value, frozen=True, kw_only=True):
    """One epoch of fine-tuning, from 1; `fit_loss` is the mean over the epoch's steps, as it was minimized."""

    epoch: int
    fit_loss: float
    select_loss: float | None = None
    fit_metric: float | None = None
    select_metric: float | None = None


class GeneralizationSection(Value, frozen=True, kw_only=True):
    """Gaps are metric on the first set minus metric on the report split: positive = generalizes worse.

    Attributes:
        gap_original: training set against report, None where no training set was sent, which `gap_note` says.
        gap_pruned: likewise; `gap_change`: gap_pruned - gap_original, with its interval.
        recovery_overfit: how much more the pruned model gained over the original on fit than on report, None where
            nothing was fitted; `overfit_warning`: where that is more than the margin, or losses show it.
        verdict_sentence: the verdict and what it rests on; `explanation`: all that people should know of it.
        smallest_detectable_loss: that the report split would show with a probability of 80 %.
        needed_samples: in the report split, to show a loss of the margin so; None where nothing is lacking or known.
        curves: one point per epoch of fine-tuning.
    """

    gap_original: float | None
    gap_pruned: float | None
    recovery_overfit: float | None
    verdict: Verdict
    margin: float
    smallest_detectable_loss: float | None
    explanation: str
    verdict_sentence: str = ""
    gap_change: float | None = None
    gap_change_interval: tuple[float, float] | None = None
    gap_note: str | None = None
    recovery_overfit_interval: tuple[float, float] | None = None
    overfit_warning: str | None = None
    non_inferiority: NonInferioritySection | None = None
    needed_samples: int | None = None
    curves: tuple[EpochPoint, ...] = msgspec.field(default=())
