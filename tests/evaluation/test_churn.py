"""Samples that change sides, by their rows."""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.churn import MAX_SAMPLES, Answers, judge_churn
from pruning_server.evaluation.judgement import PairedValues
from pruning_server.spec.report_accuracy import ChurnSection


def churn(before: list[float], after: list[float], loss: list[float], *, is_binary: bool = True) -> ChurnSection:
    """Rows are ten times the place; losses of the original are 0."""
    count = len(before)
    values = PairedValues(np.array(before), np.array(after), np.zeros(count), np.array(loss))
    numbers = np.arange(count, dtype=np.float64)
    answers = Answers(numbers, numbers, np.full(count, np.nan))
    return judge_churn(values, 10 * np.arange(count), is_binary=is_binary, answers=answers, agreement=0.5)


def test_rows_are_listed_worst_first() -> None:
    found = churn([1, 1, 1, 0, 0, 1], [0, 1, 0, 1, 1, 0], [1.0, 9.0, 3.0, -5.0, -7.0, np.nan])
    assert found.right_to_wrong == (20, 0, 50)
    assert found.wrong_to_right == (40, 30)
    assert (found.right_to_wrong_share, found.wrong_to_right_share) == (0.5, 2 / 6)
    assert [(one.row, one.change) for one in found.samples] == [
        (20, "right_to_wrong"), (0, "right_to_wrong"), (50, "right_to_wrong"),
        (40, "wrong_to_right"), (30, "wrong_to_right"),
    ]  # fmt: skip
    first, unknown = found.samples[0], found.samples[2]
    assert (first.target, first.pruned, first.loss_change) == (2, None, 3.0)
    assert unknown.loss_change is None


def test_gains_are_shown_beside_many_losses() -> None:
    count = 3 * MAX_SAMPLES
    before = [1.0] * count + [0.0] * count
    found = churn(before, [1 - one for one in before], [float(i) for i in range(2 * count)])
    kinds = [one.change for one in found.samples]
    assert (len(kinds), kinds.count("wrong_to_right")) == (MAX_SAMPLES, 6)
    assert len(found.right_to_wrong or ()) == count


def test_what_is_neither_right_nor_wrong_has_no_sides() -> None:
    found = churn([0.9, 0.5, 0.8], [0.4, 0.6, 0.7], [1, 2, 3], is_binary=False)
    assert (found.right_to_wrong, found.right_to_wrong_share) == (None, None)
    assert [(one.row, one.change) for one in found.samples] == [(0, "worse"), (20, "worse")]


def test_identical_models_change_nothing() -> None:
    found = churn([1, 0, 1], [1, 0, 1], [0, 0, 0])
    assert (found.right_to_wrong, found.wrong_to_right, found.samples) == ((), (), ())
