"""Which samples change sides between the two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pruning_server.evaluation.judgement import PairedValues
from pruning_server.spec.report_accuracy import ChangedSample, ChurnSection

MAX_ROWS = 1_000
MAX_SAMPLES = 24
# Of these, so many at most are losses, where there are gains to show too.
_MOST_LOSSES = 18


@dataclass(frozen=True)
class Answers:
    """One number per sample for people: [n] each; NaN where a sample has several, or none."""

    target: np.ndarray
    original: np.ndarray
    pruned: np.ndarray


def judge_churn(
    values: PairedValues, rows: np.ndarray, *, is_binary: bool, answers: Answers, agreement: float | None
) -> ChurnSection:
    """Returns the samples that the models see differently, by their rows.

    Args:
        values: of the report split.
        rows: [n] where its samples are in the caller's validation set.
        is_binary: whether a sample is right or wrong.
        answers: what each sample's truth and predictions are.
        agreement: share of predictions that are the same; None where nothing is chosen.
    """
    loss_change = _loss_change(values)
    if not is_binary:
        drop = np.asarray(values.original, np.float64) - np.asarray(values.pruned, np.float64)
        worse = _largest(np.flatnonzero(drop > 0), drop)[:MAX_SAMPLES]
        return ChurnSection(
            agreement=agreement, samples=tuple(_sample(rows, answers, loss_change, i, "worse") for i in worse)
        )
    before, after = values.original > 0.5, values.pruned > 0.5
    lost = _largest(np.flatnonzero(before & ~after), loss_change)
    gained = _largest(np.flatnonzero(~before & after), -loss_change)
    shown = lost[: max(_MOST_LOSSES, MAX_SAMPLES - len(gained))]
    samples = [_sample(rows, answers, loss_change, i, "right_to_wrong") for i in shown]
    samples += [_sample(rows, answers, loss_change, i, "wrong_to_right") for i in gained[: MAX_SAMPLES - len(shown)]]
    return ChurnSection(
        right_to_wrong=tuple(int(row) for row in rows[lost[:MAX_ROWS]]),
        wrong_to_right=tuple(int(row) for row in rows[gained[:MAX_ROWS]]),
        right_to_wrong_share=len(lost) / len(rows),
        wrong_to_right_share=len(gained) / len(rows),
        agreement=agreement,
        samples=tuple(samples[:MAX_SAMPLES]),
    )


def _loss_change(values: PairedValues) -> np.ndarray:
    """[n], NaN where there is no loss."""
    if values.original_loss is None or values.pruned_loss is None:
        return np.full(len(values.original), np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(values.pruned_loss, np.float64) - np.asarray(values.original_loss, np.float64)


def _largest(places: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The places, largest value first, unknown ones last."""
    return places[np.argsort(-np.nan_to_num(by[places], nan=-np.inf), kind="stable")]


def _sample(rows: np.ndarray, answers: Answers, loss_change: np.ndarray, place: int, change: str) -> ChangedSample:
    known = float(loss_change[place])
    return ChangedSample(
        row=int(rows[place]),
        target=_number(answers.target[place]),
        original=_number(answers.original[place]),
        pruned=_number(answers.pruned[place]),
        change=change,
        loss_change=known if np.isfinite(known) else None,
    )


def _number(value: float) -> float | int | None:
    """A class number as a whole number."""
    if not np.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(value)
