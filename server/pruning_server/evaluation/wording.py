"""What the report's numbers mean, in sentences for people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pruning_server.spec.report_accuracy import AccuracySection, EpochPoint
from pruning_server.spec.request import Verdict

CAVEATS = {
    "agreement": "Agreement looks only at the highest output of a sample; where outputs are no class scores, send targets."
}
NO_TRAINING_SET = (
    "No training set was sent, so that there is no gap to report: the original saw no part of the validation set. Send"
    " the set that it was trained on."
)
# Select's loss wavers; a rise of less is none.
_RISE = 1.05


def change(accuracy: AccuracySection) -> str:
    """What happened to the metric."""
    low, high = accuracy.interval
    return (
        f"On {accuracy.samples} samples that were neither fitted nor selected on, {accuracy.metric} went from"
        f" {accuracy.original:.4f} to {accuracy.pruned:.4f}: {accuracy.delta:+.4f},"
        f" {accuracy.confidence_level:.0%} interval {low:+.4f} to {high:+.4f}."
    )


def reading(found: Verdict, margin: float, *, identical_outputs: bool) -> str:
    """What follows from it."""
    if identical_outputs:
        return "Both models give the same outputs for every one of them."
    return {
        Verdict.PASS: f"A loss of the margin {margin:g} or more is ruled out.",
        Verdict.FAIL: f"The loss is larger than the margin {margin:g}.",
        Verdict.INCONCLUSIVE: f"Whether the loss stays within the margin {margin:g} cannot be told.",
    }[found]


def verdict(found: Verdict, accuracy: AccuracySection, margin: float, *, identical_outputs: bool) -> str:
    """The verdict in one sentence."""
    if identical_outputs:
        return f"PASS: both models give the same outputs for all {accuracy.samples} samples of the report split."
    low, high = accuracy.interval
    seen = (
        f"{accuracy.metric} changed by {accuracy.delta:+.4f} ({accuracy.confidence_level:.0%} interval {low:+.4f} to"
        f" {high:+.4f}, {accuracy.samples} samples)"
    )
    return {
        Verdict.PASS: f"PASS: {seen}, which rules out a loss of the margin {margin:g}.",
        Verdict.FAIL: f"FAIL: {seen}, which is a loss larger than the margin {margin:g}.",
        Verdict.INCONCLUSIVE: f"INCONCLUSIVE: {seen}, so that a loss of the margin {margin:g} is neither shown nor ruled"
        " out.",
    }[found]


def needed_samples(samples: int, detectable: float, margin: float) -> int | None:
    """How many would show a loss of the margin, where `samples` show one of `detectable`; None: more groups are needed."""
    return int(np.ceil(samples * (detectable / margin) ** 2)) if np.isfinite(detectable) else None


def power(detectable: float, needed: int | None) -> str:
    """The smallest loss that so few samples could have shown."""
    if needed is None:
        return "One independent group of samples says nothing of others: send more groups."
    return (
        f"So few samples reliably show only a loss of {detectable:.3g} and more; about {needed} samples in the report"
        " split would show one of the margin."
    )


def overfit(
    gained: float | None,
    interval: tuple[float, float] | None,
    confidence_level: float,
    margin: float,
    curves: Sequence[EpochPoint],
) -> str | None:
    """A warning where the recovery fits better than it carries over: by more than the margin, or as the losses show."""
    if gained is None or interval is None:
        return None
    found = []
    if gained > margin:
        chance = ", which may be chance" if interval[0] <= 0 else ""
        found.append(
            f"The recovery won {gained:.4f} more on the samples it was fitted on than on these"
            f" ({confidence_level:.0%} interval {interval[0]:+.4f} to {interval[1]:+.4f}{chance}): it overfits."
        )
    turned = _turning_point(curves)
    if turned is not None:
        found.append(f"From epoch {turned} on, the loss on select rose while that on fit went on falling.")
    return " ".join(found) or None


def _turning_point(curves: Sequence[EpochPoint]) -> int | None:
    """The epoch of the lowest loss on select, where it has clearly risen since, and that on fit has not."""
    known = [point for point in curves if point.select_loss is not None and np.isfinite(point.select_loss)]
    if not known:
        return None
    best = min(known, key=lambda point: point.select_loss or 0.0)
    last = known[-1]
    rose = (last.select_loss or 0.0) > _RISE * (best.select_loss or 0.0)
    return best.epoch if rose and last.fit_loss < best.fit_loss else None
