"""A drop within a budget: bounds that hold, a search whose error stays within its level, folds that share nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pruning_server.evaluation.drop import (
    DropBound,
    bound_drop,
    chosen_rung,
    fewest_samples,
    most_steps,
    needed_samples,
    search,
)
from pruning_server.evaluation.folds import cross_fit, fold_count

MAX_DROP = 0.03


def pair(rng: np.random.Generator, count: int, lost: float, gained: float) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of two models on the same samples; the original is right on 85 %."""
    original = (rng.random(count) < 0.85).astype(np.float64)
    change = rng.random(count)
    pruned = np.where(original == 1, change >= lost / 0.85, change < gained / 0.15).astype(np.float64)
    return original, pruned


# --- Bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "gained"), [(0.05, 0.02), (0.03, 0.0), (0.02, 0.04)])
@pytest.mark.parametrize("is_binary", [True, False])
def test_the_bound_covers_the_drop(lost: float, gained: float, is_binary: bool) -> None:
    rng = np.random.default_rng(1)
    repeats = 300 if is_binary else 20
    missed = 0
    for seed in range(repeats):
        original, pruned = pair(rng, 250, lost, gained)
        found = bound_drop(original, pruned, error_probability=0.05, is_binary=is_binary, seed=seed)
        assert found.upper >= found.drop
        missed += found.upper < lost - gained
    # An approximation, so a little above its level is allowed for.
    assert missed <= stats.binom.ppf(0.999, repeats, 0.06)


def test_units_are_one_observation_each() -> None:
    original, pruned = pair(np.random.default_rng(2), 100, 0.1, 0.05)
    alone = bound_drop(original, pruned, error_probability=0.05, is_binary=True)
    repeated = [np.repeat(values, 5) for values in (original, pruned)]
    units = np.repeat(np.arange(100), 5)
    together = bound_drop(*repeated, error_probability=0.05, is_binary=True, units=units)
    naive = bound_drop(*repeated, error_probability=0.05, is_binary=True)
    assert naive.upper < together.upper
    assert together.upper == pytest.approx(alone.upper, abs=0.02)


def test_outputs_that_are_no_numbers_are_never_within_a_budget() -> None:
    found = bound_drop(np.ones(5), np.full(5, np.nan), error_probability=0.05, is_binary=True)
    assert found.upper == math.inf


@pytest.mark.parametrize("max_drop", [0.5, 0.1, 0.02, 0.003])
@pytest.mark.parametrize("error_probability", [0.2, 0.05, 0.0125])
def test_the_fewest_samples_are_exactly_enough(max_drop: float, error_probability: float) -> None:
    count = fewest_samples(max_drop, error_probability)

    def upper(samples: int) -> float:
        nothing = np.ones(samples)
        return bound_drop(nothing, nothing, error_probability=error_probability, is_binary=True).upper

    assert upper(count) <= max_drop + 1e-9
    assert count == 1 or upper(count - 1) > max_drop


def test_the_needed_samples_promise_the_drop_most_of_the_time() -> None:
    rng = np.random.default_rng(4)
    error = 0.0125
    known = bound_drop(*pair(rng, 20_000, 0.03, 0.02), error_probability=error, is_binary=True)
    needed = needed_samples(known, MAX_DROP, error)
    assert needed is not None
    within = [
        bound_drop(*pair(rng, needed, 0.03, 0.02), error_probability=error, is_binary=True).upper <= MAX_DROP
        for _ in range(100)
    ]
    assert 0.6 <= np.mean(within) <= 0.98


def test_no_number_is_needed_for_what_loses_too_much() -> None:
    assert needed_samples(DropBound(0.05, 0.3, 0.07, 500, "tango"), MAX_DROP, 0.05) is None


# --- Search -----------------------------------------------------------------------------------------------------------


def known(drops: list[float | None]) -> list[DropBound | None]:
    """Bounds without any doubt."""
    return [None if drop is None else DropBound(drop, 0.1, drop, 1000, "known") for drop in drops]


@settings(max_examples=200, deadline=None)
@given(rungs=st.integers(1, 40), border=st.integers(0, 40), unreachable=st.integers(0, 40))
def test_the_last_rung_within_the_budget_is_found_in_few_steps(rungs: int, border: int, unreachable: int) -> None:
    bounds = known([None if rung >= unreachable else 0.0 if rung < border else 1.0 for rung in range(rungs)])
    steps = search(rungs, lambda rung: bounds[rung], MAX_DROP)
    last = min(rungs, border, unreachable) - 1
    assert chosen_rung(steps) == (last if last >= 0 else None)
    assert len(steps) <= most_steps(rungs)
    assert len({step.rung for step in steps}) == len(steps)
    if last < 0:
        # So that the message can speak of the least pruned one.
        assert min(step.rung for step in steps) == 0


def test_a_search_accepts_a_rung_that_loses_too_much_no_more_often_than_allowed() -> None:
    rng = np.random.default_rng(9)
    losses = np.linspace(0.0, 0.12, 15)
    error = 0.05 / most_steps(len(losses))
    wrong = 0
    for _ in range(300):
        # The same samples judge all rungs, and what is lost stays lost.
        draws = rng.random(600)

        def bound(rung: int, draws: np.ndarray = draws) -> DropBound:
            return bound_drop(
                np.ones(600), (draws >= losses[rung]).astype(float), error_probability=error, is_binary=True
            )

        chosen = chosen_rung(search(len(losses), bound, MAX_DROP))
        wrong += chosen is not None and losses[chosen] > MAX_DROP
    assert wrong <= stats.binom.ppf(0.999, 300, 0.05)


# --- Folds ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    fit=st.integers(2, 300),
    select=st.integers(2, 80),
    groups=st.integers(4, 200),
    seed=st.integers(0, 5),
)
def test_every_row_is_held_once_and_judges_only_models_that_never_saw_its_unit(
    fit: int, select: int, groups: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(fit + select + 50)
    fit_rows, select_rows = np.sort(rows[:fit]), np.sort(rows[fit : fit + select])
    units = rng.integers(groups, size=len(rows))
    folds = cross_fit(fit_rows, select_rows, units, seed)
    if len(np.unique(units[rows[: fit + select]])) < 4:
        assert folds == ()
        return
    assert len(folds) >= 2
    assert sorted(np.concatenate([fold.held for fold in folds])) == sorted(rows[: fit + select])
    for fold in folds:
        parts = [set(units[part]) for part in (fold.fit, fold.select, fold.held)]
        assert all(parts)
        assert not parts[0] & parts[1]
        assert not parts[2] & (parts[0] | parts[1])
        assert len(fold.fit) + len(fold.select) + len(fold.held) == fit + select


def test_few_samples_get_more_folds() -> None:
    assert [fold_count(samples) for samples in (10, 800, 1300, 2000, 100_000)] == [4, 4, 3, 2, 2]


def test_folds_are_the_seeds() -> None:
    fit, select, units = np.arange(80), np.arange(80, 100), np.arange(100)
    one, same, other = (cross_fit(fit, select, units, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a.held, b.held) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0].held, other[0].held)
    assert len(one[0].select) == pytest.approx(0.2 * 80, abs=1)
