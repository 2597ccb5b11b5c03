"""Steps and epochs: every sample once, no lonely sample, deterministic and bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning_server.recovery.ports import Score
from pruning_server.recovery.schedule import MAX_EPOCHS, MIN_EPOCHS, batches, decayed, plan_training
from pruning_server.spec.request import FineTune


@given(samples=st.integers(1, 300), batch_size=st.integers(1, 80), seed=st.integers(0, 5))
def test_every_sample_is_seen_once_in_batches_of_about_one_size(samples: int, batch_size: int, seed: int) -> None:
    steps = list(batches(samples, batch_size, None, np.random.default_rng(seed)))
    rows = [row for passes in steps for part in passes for row in part]
    assert sorted(rows) == list(range(samples))
    sizes = [len(part) for passes in steps for part in passes]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@given(samples=st.integers(1, 100), batch_size=st.integers(1, 40), exact=st.integers(1, 12))
def test_models_with_one_batch_size_get_nothing_else(samples: int, batch_size: int, exact: int) -> None:
    steps = list(batches(samples, batch_size, exact, np.random.default_rng(0)))
    parts = [part for passes in steps for part in passes]
    assert all(len(part) == exact for part in parts)
    assert len(parts) == samples // exact
    assert len({row for part in parts for row in part}) == len(parts) * exact
    assert all(len(passes) <= max(1, batch_size // exact) for passes in steps)


def test_a_seed_gives_the_same_order() -> None:
    orders = [list(batches(50, 8, None, np.random.default_rng(seed))) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@given(samples=st.integers(1, 10**7), macs=st.one_of(st.none(), st.integers(1, 10**13)))
def test_automatic_training_is_bounded(samples: int, macs: int | None) -> None:
    plan = plan_training(FineTune(), samples=samples, macs=macs, device_type="cpu", seed=0)
    assert MIN_EPOCHS <= plan.epochs <= MAX_EPOCHS
    assert 1 <= plan.batch_size <= 64
    assert plan.patience_epochs is not None
    cheap = plan_training(FineTune(), samples=samples, macs=1, device_type="cpu", seed=0)
    assert plan.epochs <= cheap.epochs


@pytest.mark.parametrize("epochs", [0, 1, 7])
def test_what_the_caller_says_is_done(epochs: int) -> None:
    request = FineTune(epochs=epochs, learning_rate=0.5, batch_size=3, weight_decay=0.1)
    plan = plan_training(request, samples=10, macs=None, device_type="cuda", seed=9)
    assert (plan.epochs, plan.learning_rate, plan.batch_size, plan.weight_decay) == (epochs, 0.5, 3, 0.1)
    assert (plan.patience_epochs, plan.seed) == (None, 9)


def test_the_rate_falls_to_zero() -> None:
    rates = [decayed(0.1, step, 10) for step in range(11)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (0.1, 0.0)


def test_scores_compare_by_metric_then_loss_and_numbers_beat_what_is_none() -> None:
    nan = float("nan")
    assert Score(0.9, 5.0).beats(Score(0.8, 0.1))
    assert Score(0.9, 0.1).beats(Score(0.9, 0.2))
    assert not Score(0.9, 0.2).beats(Score(0.9, 0.2))
    assert Score(0.1, 9.0).beats(Score(nan, 0.1))
    assert not Score(nan, 0.1).beats(Score(nan, 0.2))
    assert not Score(0.9, nan).beats(Score(0.1, 0.1))


def test_the_loss_decides_between_hits_that_chance_explains() -> None:
    one, other = np.zeros(400), np.zeros(400)
    one[:12], other[8:17] = 1, 1  # 8 hits of one alone, 5 of the other alone
    more = Score(0.03, 0.5, one)
    assert Score(0.02, 0.4, other).beats(more)
    assert not more.beats(Score(0.02, 0.4, other))
    one[100:140] = 1  # 48 against 4
    better = Score(0.13, 0.5, one)
    assert better.beats(Score(0.02, 0.4, other))
    assert not Score(0.02, 0.4, other).beats(better)
    assert Score(0.03, 0.4, one[:12]).beats(Score(0.02, 0.3, other))  # of other samples: by the metric
    few = np.zeros(24)
    few[0] = 1  # one hit of 24 is more than two in a hundred
    assert Score(1 / 24, 0.5, few).beats(Score(0.0, 0.4, np.zeros(24)))
