"""Whether data has drifted, told from histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pruning_server.evaluation.drift import BINS, chance_psi, describe, describe_classes, find_drift
from pruning_server.spec.report import FeatureHistogram


def psi_of(before: FeatureHistogram, values: np.ndarray) -> float:
    return find_drift({"x": before}, {"x": values})[0].psi


def test_a_histogram_is_even_over_its_own_data() -> None:
    found = describe(np.random.default_rng(0).normal(size=1000))
    assert len(found.counts) == BINS
    assert all(abs(count - 100) <= 1 for count in found.counts)
    assert sum(found.counts) == 1000


@pytest.mark.parametrize("values", [np.zeros(50), np.array([1.0, math.nan, math.inf]), np.zeros(0)])
def test_odd_features_are_described_and_compared_without_numbers_that_are_none(values: np.ndarray) -> None:
    found = describe(values)
    assert len(found.counts) == len(found.edges) + 1
    assert sum(found.counts) == int(np.isfinite(values).sum())
    (compared,) = find_drift({"x": found}, {"x": values})
    assert all(math.isfinite(one) for one in (compared.psi, compared.chance_psi, compared.ks))
    assert not compared.drifted


@pytest.mark.parametrize("seed", range(4))
def test_the_same_population_has_not_drifted(seed: int) -> None:
    random = np.random.default_rng(seed)
    before = {f"x{number}": describe(random.gamma(2.0, size=400)) for number in range(40)}
    found = find_drift(before, {name: random.gamma(2.0, size=300) for name in before})
    assert not any(one.drifted for one in found)
    assert float(np.mean([one.psi for one in found])) < chance_psi(BINS, 400, 300)


@pytest.mark.parametrize("change", [lambda x: x + 1.0, lambda x: 2.0 * x, np.abs])
def test_another_population_has_drifted(change: object) -> None:
    random = np.random.default_rng(1)
    before = describe(random.normal(size=500))
    (found,) = find_drift({"x": before}, {"x": change(random.normal(size=400))})  # type: ignore[operator]
    assert found.drifted
    assert found.psi > 0.25
    assert 0.1 < found.ks <= 1.0
    assert found.samples == (500, 400)


def test_the_index_is_its_formula() -> None:
    before = describe_classes(np.array([0] * 30 + [1] * 50 + [2] * 20), 3)
    assert before.counts == (30, 50, 20)
    then, now = np.array([30.5, 50.5, 20.5]) / 101.5, np.array([60.5, 30.5, 10.5]) / 101.5
    wanted = float(((now - then) * np.log(now / then)).sum())
    assert psi_of(before, np.array([0] * 60 + [1] * 30 + [2] * 10)) == pytest.approx(wanted, rel=1e-12)


def test_what_chance_stays_below_is_the_999th_of_1000() -> None:
    random = np.random.default_rng(2)
    limit = chance_psi(BINS, 1000, 500)
    values = [psi_of(describe(random.random(1000)), random.random(500)) for _ in range(1500)]
    assert 0.0 <= float(np.mean(np.array(values) > limit)) <= 0.006
    assert float(np.mean(np.array(values) > limit / 2)) > 0.01


def test_only_what_both_know_is_compared_most_moved_first() -> None:
    random = np.random.default_rng(3)
    before = {"a": describe(random.normal(size=300)), "b": describe(random.normal(size=300))}
    found = find_drift(before, {"b": random.normal(size=300) + 3, "a": random.normal(size=300), "c": np.zeros(3)})
    assert [one.name for one in found] == ["b", "a"]
