"""Where a gate closes, and how it is timed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pruning_server.evaluation.gate import find_gate_point, mean_seconds, samples_needed, upper_share


@pytest.mark.parametrize(("events", "samples"), [(0, 100), (3, 1000), (50, 200), (1, 2)])
def test_the_bound_is_the_share_under_which_so_few_events_have_a_tenth(events: int, samples: int) -> None:
    bound = upper_share(events, samples, 0.9)
    chance = sum(math.comb(samples, k) * bound**k * (1 - bound) ** (samples - k) for k in range(events + 1))
    assert chance == pytest.approx(0.1, abs=1e-9)
    assert bound > events / samples
    assert upper_share(samples, samples, 0.9) == 1.0


def test_as_many_samples_are_needed_as_one_answer_can_be_bounded_with() -> None:
    needed = samples_needed(0.005)
    assert upper_share(0, needed, 0.9) <= 0.005 < upper_share(0, needed - 1, 0.9)


def test_the_gate_stops_before_the_first_sample_that_breaks_the_budget() -> None:
    margins = np.arange(1000, 0, -1.0)
    changed = np.zeros(1000, dtype=bool)
    changed[[300, 400, 500, 600]] = True
    point = find_gate_point(margins, changed, budget=0.006)
    assert point is not None
    # Of 1000, two events are bounded by 0.0053 and three by 0.0067.
    assert (point.skipped_share, point.changed) == (0.5, 2)
    assert int((margins >= point.threshold).sum()) == 500
    assert point.changed_bound <= 0.006


def test_infinite_margins_close_the_gate_and_count() -> None:
    margins = np.concatenate([np.full(20, np.inf), np.arange(1000, 0, -1.0), np.full(20, np.nan)])
    changed = np.zeros(1040, dtype=bool)
    assert find_gate_point(np.full(400, np.inf), np.zeros(400, dtype=bool), budget=0.05) is None
    sure = find_gate_point(margins, changed, budget=0.05)
    assert sure is not None
    assert (sure.threshold, sure.skipped_share) == (1.0, 1020 / 1040)
    changed[:20] = True
    point = find_gate_point(margins, changed, budget=0.01)
    assert point is None


@pytest.mark.parametrize("seed", range(5))
def test_what_is_skipped_keeps_to_the_budget(seed: int) -> None:
    random = np.random.default_rng(seed)
    margins = random.choice(random.random(200), 800)  # with ties
    changed = random.random(800) > 0.9 + margins / 5
    point = find_gate_point(margins, changed, budget=0.02)
    if point is None:
        return
    skipped = margins >= point.threshold
    assert skipped.mean() == pytest.approx(point.skipped_share)
    assert int(changed[skipped].sum()) == point.changed
    assert point.changed / 800 < point.changed_bound <= 0.02


def test_nothing_is_skipped_where_the_surest_answer_is_wrong_or_nothing_is_known() -> None:
    margins = np.array([3.0] * 10 + [1.0] * 990)
    assert find_gate_point(margins, np.array([True] * 10 + [False] * 990), budget=0.003) is None
    assert find_gate_point(np.full(600, np.nan), np.zeros(600, dtype=bool), budget=0.01) is None
    assert find_gate_point(np.ones(20), np.zeros(20, dtype=bool), budget=0.01) is None


def test_everything_is_skipped_where_no_answer_changes() -> None:
    point = find_gate_point(np.linspace(0, 1, 600), np.zeros(600, dtype=bool), budget=0.005)
    assert point is not None
    assert (point.skipped_share, point.threshold) == (1.0, 0.0)


def test_models_are_timed_in_turns_on_every_sample_and_a_hiccup_does_not_count() -> None:
    now, order = [0.0], []

    def model(which: int, seconds: float) -> object:
        def run(sample: int) -> None:
            order.append((which, sample))
            hiccup = 50.0 if len(order) == 25 else 0.0
            now[0] += seconds * (sample + 1) + hiccup

        return run

    slow, quick = mean_seconds(
        [model(0, 2.0), model(1, 1.0)],  # type: ignore[list-item]
        3,
        clock=lambda: now[0],
        synchronize=lambda: None,
        max_seconds=1e9,
        rounds=5,
    )
    assert (slow, quick) == (4.0, 2.0)
    assert len(order) == 6 * 3 * 2
    first = [order[place][0] for place in range(0, len(order), 2)]
    assert set(first) == {0, 1}


def test_a_slow_model_is_timed_once_at_least() -> None:
    now = [0.0]

    def run(_: int) -> None:
        now[0] += 10.0

    assert mean_seconds([run], 1, clock=lambda: now[0], synchronize=lambda: None, max_seconds=0.5) == (10.0,)
