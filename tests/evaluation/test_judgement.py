"""The verdict and the sections of the report that hold it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_server.evaluation.judgement import (
    PairedValues,
    decide,
    independent_units,
    judge_accuracy,
    judge_generalization,
)
from pruning_server.evaluation.paired import mcnemar_exact, tango_interval
from pruning_server.spec.base import to_json
from pruning_server.spec.report_accuracy import AccuracySection, EpochPoint, GeneralizationSection, PairedNumber
from pruning_server.spec.request import Verdict


def binary(lost: int, gained: int, right: int, wrong: int) -> PairedValues:
    """Right and wrong samples of two models."""
    original = np.array([1.0] * lost + [0.0] * gained + [1.0] * right + [0.0] * wrong)
    pruned = np.array([0.0] * lost + [1.0] * gained + [1.0] * right + [0.0] * wrong)
    return PairedValues(original, pruned, 1.0 - original, 1.5 - pruned)


def judge(
    values: PairedValues, *, is_binary: bool = True, units: np.ndarray | None = None, **options: object
) -> tuple[AccuracySection, GeneralizationSection]:
    """Both sections with defaults."""
    accuracy = judge_accuracy(
        values, metric="accuracy", is_binary=is_binary, confidence_level=0.95, seed=0, units=units
    )
    arguments = {"margin": 0.01, "identical_outputs": False, "units": units} | options
    return accuracy, judge_generalization(values, accuracy, **arguments)


def test_the_accuracy_section() -> None:
    accuracy, _ = judge(binary(7, 2, 200, 41))
    assert (accuracy.samples, accuracy.right_to_wrong, accuracy.wrong_to_right) == (250, 7, 2)
    assert (accuracy.original, accuracy.pruned) == pytest.approx((207 / 250, 202 / 250))
    assert accuracy.delta == pytest.approx(accuracy.pruned - accuracy.original)
    interval = tango_interval(7, 2, 250, 0.95, continuity=0.25)
    assert accuracy.interval == (interval.low, interval.high)
    assert accuracy.interval_method == "tango, continuity corrected"
    assert accuracy.units == 250
    assert accuracy.mcnemar_p == mcnemar_exact(7, 2)
    assert accuracy.loss.original == pytest.approx(43 / 250)
    assert accuracy.loss.delta == pytest.approx(0.5 + 5 / 250)
    assert accuracy.loss.interval[0] < accuracy.loss.delta < accuracy.loss.interval[1]


def test_other_metrics_get_no_counts() -> None:
    rng = np.random.default_rng(0)
    original = rng.normal(size=100)
    accuracy, _ = judge(PairedValues(original, original - 0.5 + rng.normal(size=100)), is_binary=False)
    assert (accuracy.right_to_wrong, accuracy.wrong_to_right, accuracy.mcnemar_p) == (None, None, None)
    assert accuracy.interval_method == "bootstrap-t"
    assert accuracy.interval[0] < accuracy.delta < accuracy.interval[1]
    assert accuracy.loss == PairedNumber()


def test_groups_are_resampled_whole_and_take_mcnemar_away() -> None:
    values = binary(20, 0, 80, 0)
    grouped, _ = judge(values, units=np.arange(100) // 2)
    alone, _ = judge(values, units=np.arange(100))
    assert "whole groups" in grouped.interval_method
    assert (grouped.mcnemar_p, grouped.right_to_wrong) == (None, 20)
    assert alone.interval_method == "tango"
    assert grouped.interval[1] - grouped.interval[0] > alone.interval[1] - alone.interval[0]


def test_a_few_duplicates_do_not_count_as_groups() -> None:
    units = np.concatenate([np.arange(97), [0, 1, 2]])
    assert independent_units(units) is None
    assert independent_units(np.arange(100) // 2) is not None
    assert independent_units(None) is None


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.009, 0.02), Verdict.PASS),
        ((-0.01, 0.02), Verdict.INCONCLUSIVE),
        ((-0.02, -0.01), Verdict.INCONCLUSIVE),
        ((-0.02, -0.0101), Verdict.FAIL),
        ((0.1, 0.2), Verdict.PASS),
        ((-1.0, 1.0), Verdict.INCONCLUSIVE),
    ],
)
def test_the_rule_of_the_verdict(interval: tuple[float, float], verdict: Verdict) -> None:
    assert decide(interval, 0.01, identical_outputs=False) is verdict
    assert decide(interval, 0.01, identical_outputs=True) is Verdict.PASS


@given(lost=st.integers(0, 60), gained=st.integers(0, 60), right=st.integers(1, 300), margin=st.floats(0.001, 0.5))
def test_the_verdict_follows_from_the_report_alone(lost: int, gained: int, right: int, margin: float) -> None:
    values = binary(lost, gained, right, 0)
    accuracy, general = judge(PairedValues(values.original, values.pruned), margin=margin)
    low, high = accuracy.interval
    wanted = Verdict.PASS if low > -margin else Verdict.FAIL if high < -margin else Verdict.INCONCLUSIVE
    assert general.verdict is wanted
    assert general.margin == margin
    json.loads(to_json([accuracy, general]))


def test_gaps_and_overfit_have_their_documented_signs() -> None:
    report = PairedValues(np.array([1.0, 1, 1, 0]), np.array([1.0, 1, 0, 0]))
    fit = PairedValues(np.array([1.0, 0, 0, 0]), np.array([1.0, 1, 1, 0]))
    train = PairedValues(np.array([1.0, 1, 1, 1]), np.array([1.0, 1, 1, 1]))
    _, general = judge(report, fit=fit, train=train)
    assert general.gap_original == pytest.approx(1.0 - 0.75)
    assert general.gap_pruned == pytest.approx(1.0 - 0.5)
    assert general.recovery_overfit == pytest.approx(0.5 - (-0.25))
    assert "overfits" in general.explanation


def test_what_was_not_sent_is_not_reported() -> None:
    _, general = judge(binary(0, 0, 10, 0))
    assert (general.gap_original, general.gap_pruned, general.recovery_overfit) == (None, None, None)


def test_identical_outputs_pass_however_few() -> None:
    _, general = judge(binary(0, 0, 2, 1), identical_outputs=True)
    assert general.verdict is Verdict.PASS
    assert "same outputs" in general.explanation


def test_equal_answers_of_few_samples_prove_nothing() -> None:
    accuracy, general = judge(binary(0, 0, 20, 5))
    assert general.verdict is Verdict.INCONCLUSIVE
    assert accuracy.interval[0] < -0.1
    assert general.smallest_detectable_loss == pytest.approx(0.112, abs=0.001)
    assert "about 3140 samples" in general.explanation


def test_the_number_of_samples_that_is_advised_would_do() -> None:
    """The advice is taken: with as many samples and the same rates, the smallest detectable loss is the margin."""
    _, few = judge(binary(3, 3, 94, 0), margin=0.02)
    needed = int(few.explanation.split("about ")[1].split()[0])
    assert few.needed_samples == needed
    scale = needed / 100
    _, many = judge(binary(round(3 * scale), round(3 * scale), round(94 * scale), 0), margin=0.02)
    assert many.smallest_detectable_loss == pytest.approx(0.02, rel=0.02)


def test_the_explanation_says_what_happened() -> None:
    _, general = judge(binary(150, 10, 800, 40))
    assert general.verdict is Verdict.FAIL
    for part in ("1000 samples", "accuracy went from 0.9500 to 0.8100", "-0.1400", "larger than the margin 0.01"):
        assert part in general.explanation


def test_one_group_says_nothing() -> None:
    accuracy, general = judge(binary(0, 0, 50, 0), units=np.zeros(50, dtype=np.int64))
    assert general.verdict is Verdict.INCONCLUSIVE
    assert general.smallest_detectable_loss is None
    assert "group" in general.explanation
    assert accuracy.interval[0] < -0.5


def test_many_discordant_pairs_get_tangos_interval_as_it_is() -> None:
    accuracy, _ = judge(binary(30, 12, 200, 8))
    interval = tango_interval(30, 12, 250, 0.95)
    assert (accuracy.interval, accuracy.interval_method) == ((interval.low, interval.high), "tango")


@given(lost=st.integers(0, 60), gained=st.integers(0, 60), right=st.integers(1, 300), margin=st.floats(0.001, 0.5))
def test_non_inferiority_is_shown_where_the_verdict_is_pass(lost: int, gained: int, right: int, margin: float) -> None:
    values = binary(lost, gained, right, 0)
    accuracy, general = judge(PairedValues(values.original, values.pruned), margin=margin)
    test = general.non_inferiority
    assert test is not None
    assert test.p_value is not None
    assert test.is_shown == (general.verdict is Verdict.PASS)
    if abs(accuracy.interval[0] + margin) > 1e-9:
        assert (test.p_value < test.alpha) == test.is_shown
    assert general.verdict_sentence.startswith(general.verdict.name)
    assert general.verdict_sentence.count(". ") == 0


def test_identical_outputs_are_not_tested() -> None:
    _, general = judge(binary(0, 0, 2, 1), identical_outputs=True)
    test = general.non_inferiority
    assert test is not None
    assert (test.p_value, test.is_shown) == (None, True)
    assert "same outputs" in general.verdict_sentence


def test_a_gap_needs_the_training_set_and_says_so() -> None:
    _, without = judge(binary(3, 3, 94, 0))
    assert without.gap_change is None
    assert "training set" in (without.gap_note or "")
    _, given_one = judge(binary(10, 2, 80, 8), train=binary(0, 0, 90, 10))
    assert given_one.gap_note is None
    assert given_one.gap_change == pytest.approx(0.08)
    assert given_one.gap_pruned - given_one.gap_original == pytest.approx(0.08)
    low, high = given_one.gap_change_interval
    assert low < 0.08 < high


def curve(fit: list[float], select: list[float]) -> list[EpochPoint]:
    """Losses of epochs from 1."""
    return [EpochPoint(epoch=i, fit_loss=a, select_loss=b) for i, (a, b) in enumerate(zip(fit, select, strict=True), 1)]


def test_recovery_that_fits_better_than_it_carries_over_is_warned_of() -> None:
    report, fit = binary(40, 0, 160, 0), binary(0, 40, 160, 0)
    _, general = judge(report, fit=fit)
    assert general.recovery_overfit == pytest.approx(0.4)
    low, high = general.recovery_overfit_interval
    assert 0.3 < low < 0.4 < high < 0.5
    assert "it overfits" in (general.overfit_warning or "")
    assert "may be chance" not in general.overfit_warning
    _, few = judge(binary(1, 0, 9, 0), fit=binary(0, 1, 9, 0))
    assert "may be chance" in few.overfit_warning
    _, same = judge(report, fit=report)
    assert (same.recovery_overfit, same.overfit_warning) == (0, None)
    assert judge(report)[1].overfit_warning is None


def test_losses_that_part_are_warned_of() -> None:
    report = binary(5, 5, 190, 0)
    parting = curve([1.0, 0.5, 0.2, 0.1], [1.0, 0.6, 0.8, 0.9])
    _, general = judge(report, fit=report, curves=parting)
    assert "From epoch 2 on" in general.overfit_warning
    assert general.curves == tuple(parting)
    falling = curve([1.0, 0.5, 0.2], [1.0, 0.6, 0.61])
    assert judge(report, fit=report, curves=falling)[1].overfit_warning is None


def test_losses_that_are_no_numbers_stay_out_of_the_json() -> None:
    values = PairedValues(np.ones(3), np.ones(3), np.zeros(3), np.array([0.0, np.inf, 1.0]))
    accuracy, _ = judge(values)
    assert (accuracy.loss.original, accuracy.loss.pruned, accuracy.loss.interval) == (0.0, None, None)
    json.loads(to_json(accuracy))


def test_the_same_losses_have_no_interval_to_speak_of() -> None:
    accuracy, _ = judge(PairedValues(np.ones(40), np.ones(40), np.full(40, 0.3), np.full(40, 0.3)))
    assert accuracy.loss.interval == (0.0, 0.0)


def test_agreement_says_what_it_cannot_see() -> None:
    values = binary(0, 0, 40, 0)
    accuracy = judge_accuracy(values, metric="agreement", is_binary=True, confidence_level=0.95, seed=0)
    general = judge_generalization(values, accuracy, margin=0.01, identical_outputs=False)
    assert "highest output" in general.explanation
    assert "highest output" not in judge(values)[1].explanation
