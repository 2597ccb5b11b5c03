"""The controller's steps, whatever the select split says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_server.pruning.dynamic.controller import FIRST_STEP, MAX_ATTEMPTS, SMALLEST_STEP, Controller


def run(limit: float) -> tuple[list[float], list[bool], Controller]:
    """Accepts whatever goes no further than `limit`."""
    controller, tried, accepted = Controller(), [], []
    while not controller.is_over:
        tried.append(controller.propose())
        accepted.append(tried[-1] <= limit)
        if accepted[-1]:
            controller.accept()
        else:
            controller.reject()
    return tried, accepted, controller


@given(st.floats(0.0, 1.0))
def test_it_ends_close_below_what_is_possible(limit: float) -> None:
    tried, accepted, controller = run(limit)
    assert len(tried) <= MAX_ATTEMPTS
    assert controller.accepted <= limit
    assert limit - controller.accepted < 2 * SMALLEST_STEP or controller.accepted == 1.0
    kept = [0.0, *(way for way, ok in zip(tried, accepted, strict=True) if ok)]
    assert kept == sorted(kept)
    assert controller.accepted == kept[-1]
    assert all(0.0 < way <= 1.0 for way in tried)


def test_after_a_step_too_far_it_tries_half_of_it_from_the_same_place() -> None:
    tried, accepted, controller = run(1.6 * FIRST_STEP)
    assert tried[:3] == [FIRST_STEP, 2 * FIRST_STEP, 1.5 * FIRST_STEP]
    assert accepted[:3] == [True, False, True]
    assert controller.accepted == pytest.approx(1.6 * FIRST_STEP, abs=SMALLEST_STEP)


def test_where_nothing_can_go_it_stays_at_nothing() -> None:
    _, accepted, controller = run(0.0)
    assert not any(accepted)
    assert controller.accepted == 0.0


@pytest.mark.parametrize("answers", ["a" * 24, "r" * 24, "ar" * 12, "aaarrar" * 4])
def test_progress_never_falls_and_ends_at_one(answers: str) -> None:
    controller = Controller()
    told = [controller.progress]
    for answer in answers:
        if controller.is_over:
            break
        least = controller.next_progress
        if answer == "a":
            controller.accept()
        else:
            controller.reject()
        assert controller.progress >= least
        told.append(controller.progress)
    assert told == sorted(told)
    assert told[0] == 0.0
    assert not controller.is_over or told[-1] == 1.0
