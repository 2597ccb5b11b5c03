"""Whether models are as sure as they are right: expected calibration error, likelihood, Brier score."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pruning_server.evaluation.means import difference_of_sums
from pruning_server.evaluation.numbers import paired_number
from pruning_server.evaluation.proportions import Interval
from pruning_server.spec.report_accuracy import CalibrationSection, PairedNumber, Reliability, ReliabilityBin

MIN_BINS, MAX_BINS = 5, 15
MIN_BIN_PREDICTIONS = 20
ECE_RESAMPLES = 400
_MIN_ECE_RESAMPLES = 100
_MAX_DRAWS = 20_000_000


@dataclass(frozen=True)
class Confidences:
    """What one model says of m predictions: each [m] float64.

    Attributes:
        confidence: probability of the class that it chooses.
        right: 1 where that is the true class, else 0.
        nll: negative logarithm of the true class's probability.
        brier: squared error of the probabilities, summed over the classes; of two, that of one.
    """

    confidence: np.ndarray
    right: np.ndarray
    nll: np.ndarray
    brier: np.ndarray

    @classmethod
    def of_classes(cls, log_probabilities: np.ndarray, target: np.ndarray) -> Confidences:
        """From [m, classes] natural logarithms and [m] class numbers."""
        logs = np.asarray(log_probabilities, np.float64)
        rows, probabilities = np.arange(len(logs)), np.exp(logs)
        true = probabilities[rows, target]
        chosen = logs.argmax(axis=1)
        brier = np.square(probabilities).sum(axis=1) - 2.0 * true + 1.0
        return cls(
            confidence=probabilities[rows, chosen],
            right=(chosen == target).astype(np.float64),
            nll=-logs[rows, target],
            brier=brier / 2.0 if logs.shape[1] == 2 else brier,
        )


def judge_calibration(
    original: Confidences,
    pruned: Confidences,
    *,
    labels: np.ndarray,
    scores: str,
    confidence_level: float,
    seed: int,
) -> CalibrationSection:
    """Returns the calibration section.

    Bins hold equally many predictions, or more where confidences are equal. Likelihood and Brier score are means, with
    their intervals; the calibration error is none, and larger for fewer predictions: its interval is that of the
    difference which sets of this size show, by the normal approximation with a bootstrapped standard error.
    Sources: Naeini, Cooper and Hauskrecht, 2015, AAAI (ECE); Nguyen and O'Connor, 2015, EMNLP (adaptive bins); Brier,
    1950, Monthly Weather Review 78:1-3.

    Args:
        original: its confidences.
        pruned: those of the same predictions, in the same order.
        labels: [m] number of the unit that each prediction belongs to, all resampled whole.
        scores: what outputs were taken for.
        confidence_level: of the intervals, in (0, 1).
        seed: of the resampling.
    """
    bins = int(np.clip(len(labels) // MIN_BIN_PREDICTIONS, MIN_BINS, MAX_BINS))
    units = np.unique(labels, return_inverse=True)[1].reshape(-1)
    return CalibrationSection(
        predictions=len(labels),
        bins=bins,
        ece=_judge_ece(original, pruned, units, bins, confidence_level, seed),
        nll=_judge_mean(original.nll, pruned.nll, units, confidence_level, seed),
        brier=_judge_mean(original.brier, pruned.brier, units, confidence_level, seed),
        reliability=Reliability(original=reliability(original, bins), pruned=reliability(pruned, bins)),
        scores=scores,
    )


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Mean distance between confidence and share of right ones over bins of equal mass, in [0, 1]."""
    place = _bins(confidence, bins)
    gaps = np.bincount(place, weights=confidence - right)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability(model: Confidences, bins: int) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram, least confident first."""
    place = _bins(model.confidence, bins)
    found = []
    for number in np.unique(place):
        inside = place == number
        confidence = model.confidence[inside]
        found.append(
            ReliabilityBin(
                low=float(confidence.min()),
                high=float(confidence.max()),
                predictions=int(inside.sum()),
                confidence=float(confidence.mean()),
                accuracy=float(model.right[inside].mean()),
            )
        )
    return tuple(found)


def _bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """[m] number of the bin; equal confidences are in the same."""
    edges = np.unique(np.quantile(confidence, np.linspace(0.0, 1.0, bins + 1)[1:-1]))
    return np.searchsorted(edges, confidence, side="right")


def _judge_mean(
    original: np.ndarray, pruned: np.ndarray, units: np.ndarray, confidence_level: float, seed: int
) -> PairedNumber:
    with np.errstate(invalid="ignore"):
        differences = pruned - original
        delta = float(differences.mean())
    interval = None
    if np.isfinite(differences).all():
        sums, sizes = np.bincount(units, weights=differences), np.bincount(units).astype(np.float64)
        grouped = len(sums) < len(differences)
        found = difference_of_sums(sums, sizes, seed=seed, is_bounded=False, grouped=grouped)
        interval = found.interval(confidence_level)
    return paired_number(float(original.mean()), float(pruned.mean()), delta, interval)


def _judge_ece(
    original: Confidences, pruned: Confidences, units: np.ndarray, bins: int, confidence_level: float, seed: int
) -> PairedNumber:
    before, after = (expected_calibration_error(model.confidence, model.right, bins) for model in (original, pruned))
    delta, same = after - before, _are_same(original, pruned)
    error = 0.0 if same else _ece_error(original, pruned, units, bins, seed)
    half = NormalDist().inv_cdf(0.5 + confidence_level / 2.0) * error
    method = "no spread" if same else "bootstrapped standard error"
    return paired_number(before, after, delta, Interval(max(delta - half, -1.0), min(delta + half, 1.0), method))


def _are_same(original: Confidences, pruned: Confidences) -> bool:
    return np.array_equal(original.confidence, pruned.confidence) and np.array_equal(original.right, pruned.right)


def _ece_error(original: Confidences, pruned: Confidences, units: np.ndarray, bins: int, seed: int) -> float:
    """Standard deviation of the difference over resamples of whole units, binned anew."""
    rng, count = np.random.default_rng(seed), int(units.max()) + 1
    sorted_models = [_by_confidence(model, units) for model in (original, pruned)]
    resamples = int(np.clip(_MAX_DRAWS // len(units), _MIN_ECE_RESAMPLES, ECE_RESAMPLES))
    differences = np.empty(resamples)
    for number in range(resamples):
        weights = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
        before, after = (_weighted_error(gaps, weights[owners], bins) for gaps, owners in sorted_models)
        differences[number] = after - before
    return float(differences.std(ddof=1))


def _by_confidence(model: Confidences, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(model.confidence, kind="stable")
    return (model.confidence - model.right)[order], units[order]


def _weighted_error(gaps: np.ndarray, weights: np.ndarray, bins: int) -> float:
    """The calibration error of predictions in the order of confidence that count as often as `weights` say."""
    reached = np.cumsum(weights)
    starts = np.searchsorted(reached, reached[-1] * np.arange(bins) / bins, side="right")
    sums = np.add.reduceat(gaps * weights, np.unique(np.minimum(starts, len(gaps) - 1)))
    return float(np.abs(sums).sum() / reached[-1])
