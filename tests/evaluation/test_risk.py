"""Learn-then-Test: what is certified is right as often as promised, and nothing else is looked at."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pruning_server.evaluation.bounds import MeanBound
from pruning_server.evaluation.metrics import choose_metric
from pruning_server.evaluation.risk import judge_losses, needed_units, run_sequence, spread_of, unit_means
from pruning_server.spec.request import Task

MAX_LOSS, ERROR = 0.05, 0.1


def ladder(rng: np.random.Generator, count: int, lost: list[float]) -> list[np.ndarray]:
    """Losses of candidates on the same samples: what one candidate lost the next loses too, as pruning does."""
    draws = rng.random(count)
    return [(draws < share).astype(np.float64) for share in lost]


def certified(candidates: list[np.ndarray], seed: int) -> int:
    """How many candidates are certified, the least pruned first."""
    bound = MeanBound(ERROR, seed=seed)
    tests = run_sequence(candidates, lambda losses: judge_losses(losses, MAX_LOSS, bound), lambda test: test.certified)
    return sum(test.certified for test in tests)


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param([0.05] * 8, id="all at the border"),
        pytest.param([0.0, 0.01, 0.05, 0.05, 0.06, 0.08], id="a ladder over the border"),
        pytest.param([0.05, 0.01, 0.05, 0.01, 0.05], id="not in order"),
    ],
)
def test_a_model_that_loses_too_much_is_seldom_certified(lost: list[float]) -> None:
    rng = np.random.default_rng(0)
    bad = [place for place, share in enumerate(lost) if share >= MAX_LOSS]
    wrong = sum(certified(ladder(rng, 120, lost), seed) > bad[0] for seed in range(120))
    assert wrong <= stats.binom.ppf(0.999, 120, ERROR)


def test_candidates_that_lose_little_are_certified() -> None:
    rng = np.random.default_rng(1)
    counts = [certified(ladder(rng, 400, [0.0, 0.005, 0.01, 0.02, 0.3]), seed) for seed in range(10)]
    assert min(counts) >= 2
    assert max(counts) <= 4
    assert np.mean(counts) > 3


def test_the_sequence_ends_at_the_first_that_fails() -> None:
    looked_at = []

    def test(number: int) -> bool:
        looked_at.append(number)
        return number != 2

    assert run_sequence(range(10), test, bool) == (True, True, False)
    assert looked_at == [0, 1, 2]
    assert run_sequence([], test, bool) == ()


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.01, 0.005), (0.06, 0.03), (0.03, 0.03)])
def test_the_needed_number_certifies_most_of_the_time(lost: float, gained: float) -> None:
    rng = np.random.default_rng(3)
    bound = MeanBound(ERROR)

    def draw(count: int) -> np.ndarray:
        return rng.choice([1.0, -1.0, 0.0], size=count, p=[lost, gained, 1.0 - lost - gained])

    needed = needed_units(draw(50_000), MAX_LOSS, bound)
    assert needed is not None
    share = np.mean([judge_losses(draw(needed), MAX_LOSS, bound).certified for _ in range(25)])
    assert share >= 0.5
    if lost:
        assert np.mean([judge_losses(draw(needed // 4), MAX_LOSS, bound).certified for _ in range(25)]) < share


def test_no_number_is_needed_for_what_loses_too_much() -> None:
    test = judge_losses(np.array([1.0, 0.0, 0.0, 0.0] * 50), MAX_LOSS, MeanBound(ERROR))
    assert test.needed_units is None
    assert not test.certified
    assert test.bound > 0.25


def test_what_is_no_number_counts_as_lost() -> None:
    test = judge_losses(np.full(500, np.nan), MAX_LOSS, MeanBound(ERROR))
    assert (test.loss, test.bound, test.certified) == (1.0, 1.0, False)


def test_certified_and_a_bound_within_what_is_accepted_are_the_same() -> None:
    rng = np.random.default_rng(5)
    for seed in range(15):
        test = judge_losses((rng.random(300) < 0.025).astype(float), MAX_LOSS, MeanBound(ERROR, seed=seed))
        assert test.certified == (test.bound <= MAX_LOSS)
        if test.certified:
            assert test.p_value <= ERROR


def test_a_unit_is_one_observation() -> None:
    values = np.array([1.0, 0.0, 1.0, -1.0, 0.5])
    units = np.array([7, 2, 7, 2, 9])
    np.testing.assert_allclose(unit_means(values, units), [-0.5, 1.0, 0.5])
    repeated = unit_means(np.repeat([0.0, 1.0], 50), np.repeat([0, 1], 50))
    assert judge_losses(repeated, MAX_LOSS, MeanBound(ERROR)).units == 2


@pytest.mark.parametrize(
    ("task", "shape", "spread"),
    [
        (Task.CLASSIFICATION, (10,), 1.0),
        (Task.CLASSIFICATION, (1,), 1.0),
        (Task.MULTILABEL, (4,), 1.0),
        (Task.AGREEMENT, (10,), 1.0),
        (Task.EMBEDDING, (16,), 2.0),
        (Task.REGRESSION, (1,), None),
        (Task.AGREEMENT, (3, 4), None),
    ],
)
def test_only_bounded_metrics_have_a_spread(task: Task, shape: tuple[int, ...], spread: float | None) -> None:
    metric = choose_metric(task, shape)
    assert spread_of(metric) == spread
    if spread is not None and not metric.compares_with_original:
        outputs = np.random.default_rng(0).normal(size=(50, *shape))
        values = metric.per_sample(outputs, np.zeros((50, *shape)), outputs)
        assert values.max() - values.min() <= spread
