"""The measured target: few measurements, noise, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.structures import Toy, chain
from helpers.toy_evidence import NoTrials, ToyEvidence
from pruning_server.errors import JobFailureError, Reason
from pruning_server.pruning.allocation.latency import RESOLUTION, SLACK
from pruning_server.pruning.evidence import SampleScores
from pruning_server.pruning.strategies import plan_structure
from pruning_server.pruning.values import StructuralPlan
from pruning_server.spec.request import ChannelConstraints, Granularity, Scope, StaticStrategy, Target, TargetKind

SIZES = [40, 33, 60]
MOST_MEASUREMENTS = 16


class Stopwatch(NoTrials):
    """Times that depend on what stays, with noise drawn by a seed."""

    def __init__(self, toy: Toy, seconds: Callable[[Mapping[str, list[int]]], float], noise: float = 0.0) -> None:
        self.toy, self.seconds = toy, seconds
        self.flat = self.unseen = frozenset()
        self.noise = np.random.default_rng(0)
        self.spread = noise
        self.asked: list[Any] = []

    def latency_ratio(self, removal: Any, *, careful: bool = False) -> float:
        self.asked.append(careful)
        noise = self.noise.normal(0, self.spread / (4 if careful else 1))
        return self.true_ratio(removal) * math.exp(noise)

    def true_ratio(self, removal: Any) -> float:
        return self.seconds(self.toy.shapes(removal)) / self.seconds(self.toy.shapes({}))


def smooth(shapes: Mapping[str, Sequence[int]]) -> float:
    """As many operations, and something that never goes away."""
    return 500.0 + sum(math.prod(shape) for shape in shapes.values())


def blocky(shapes: Mapping[str, Sequence[int]]) -> float:
    """Kernels that fill blocks of 16."""
    return 500.0 + sum(math.prod(16 * math.ceil(size / 16) for size in shape) for shape in shapes.values())


def plan(watch: Stopwatch, value: float, scope: Scope = Scope.GLOBAL, **channels: int) -> StructuralPlan:
    rules = StaticStrategy(granularity=Granularity.CHANNEL, scope=scope, channels=ChannelConstraints(**channels))
    target = Target(kind=TargetKind.LATENCY_RATIO, value=value)
    return plan_structure(watch.toy.input(), rules, target, 0, evidence=watch)


@settings(max_examples=40, deadline=None)
@given(value=st.floats(0.35, 1.0), scope=st.sampled_from([Scope.GLOBAL, Scope.LAYER]), blocks=st.booleans())
def test_the_target_is_met_by_few_measurements(value: float, scope: Scope, blocks: bool) -> None:
    watch = Stopwatch(chain([16, *SIZES, 16]), blocky if blocks else smooth)
    made = plan(watch, value, scope)
    assert watch.true_ratio(made.removal) == pytest.approx(made.achieved)
    assert made.achieved <= value
    assert len(watch.asked) <= MOST_MEASUREMENTS
    assert all(kept >= 1 for kept in made.kept_counts.values())
    assert plan(Stopwatch(watch.toy, watch.seconds), value, scope) == made


@pytest.mark.parametrize("value", [0.4, 0.6, 0.8])
def test_no_more_goes_than_about_what_is_needed(value: float) -> None:
    watch = Stopwatch(chain([16, *SIZES, 16]), smooth)
    made = plan(watch, value, multiple=1)
    assert value * (1 - SLACK) - 2 * RESOLUTION <= watch.true_ratio(made.removal) <= value


@pytest.mark.parametrize("value", [0.4, 0.6, 0.8])
def test_noise_is_outweighed_by_the_confirmation(value: float) -> None:
    toy = chain([16, *SIZES, 16])
    made = [plan(Stopwatch(toy, smooth, noise), value, multiple=1) for noise in (0.0, 0.05, 0.1)]
    quiet = Stopwatch(toy, smooth)
    # A long measurement is off by 0.025 at most times.
    assert all(quiet.true_ratio(one.removal) <= value * 1.03 for one in made)


def test_widths_that_cost_nothing_are_kept() -> None:
    toy = chain([16, 32, 32, 64, 16])
    free = plan(Stopwatch(toy, blocky), 0.6)
    exact = plan(Stopwatch(toy, blocky), 0.6, multiple=1)
    assert free.removed_channels < exact.removed_channels
    assert all(kept % 16 == 0 for kept in free.kept_counts.values())
    assert "multiples of 16, which costs no time" in free.notes[-1]
    assert blocky(toy.shapes(free.removal)) == blocky(toy.shapes(exact.removal))


def test_what_even_everything_does_not_reach_is_refused_with_what_it_reaches() -> None:
    watch = Stopwatch(chain([16, *SIZES, 16]), lambda shapes: 20_000.0 + smooth(shapes))
    with pytest.raises(JobFailureError) as refused:
        plan(watch, 0.3)
    assert refused.value.reason is Reason.TARGET_UNREACHABLE
    assert len(watch.asked) <= MOST_MEASUREMENTS
    nearest = float(refused.value.metadata["nearest"])
    assert 0.3 < nearest < 1
    assert plan(watch, nearest).achieved <= nearest


def test_a_model_that_gets_no_faster_is_refused() -> None:
    watch = Stopwatch(chain([16, *SIZES, 16]), lambda _: 1.0)
    with pytest.raises(JobFailureError, match="no removal made it measurably faster") as refused:
        plan(watch, 0.9)
    assert refused.value.reason is Reason.TARGET_UNREACHABLE


@pytest.mark.parametrize("overhead", [20_000.0, 60_000.0])
def test_channels_that_buy_hardly_any_time_stay(overhead: float) -> None:
    """Of a tiny net, calls take most of the time: a goal near that is no reason to remove nearly everything."""
    watch = Stopwatch(chain([16, *SIZES, 16]), lambda shapes: overhead + smooth(shapes))
    fastest = watch.true_ratio({number: list(range(1, size)) for number, size in enumerate(SIZES)})
    with pytest.raises(JobFailureError) as refused:
        plan(watch, fastest * 1.01 / (1 - SLACK), multiple=1)
    assert refused.value.reason is Reason.TARGET_UNREACHABLE
    nearest = float(refused.value.metadata["nearest"])
    assert nearest > fastest
    if nearest < 1:
        assert "does not go with channels" in refused.value.message
        made = plan(watch, nearest, multiple=1)
        # A seventh of the operations are the floor here; fewer would save less than can be measured.
        left, whole = (smooth(watch.toy.shapes(gone)) - 500 for gone in (made.removal, {}))
        assert left > 0.1 * whole


def test_nothing_asked_nothing_measured() -> None:
    watch = Stopwatch(chain([16, *SIZES, 16]), smooth)
    assert plan(watch, 1.0).removal == {}
    assert watch.asked == []


def test_sensitivity_and_latency_go_together() -> None:
    class Both(Stopwatch):
        def original(self, part: str) -> Any:
            return [part] * 8

        def calls(self, visit: Any, *, samples: int, names: Any = None) -> None:
            """Nothing is refitted."""

        def divergence(self, removed: Any, **_: Any) -> float:
            return sum(len(gone) ** 2 * (10.0 if number == 0 else 1.0) for number, gone in removed.items())

    watch = Both(chain([16, *SIZES, 16]), smooth)
    made = plan(watch, 0.5, Scope.SENSITIVITY)
    assert watch.true_ratio(made.removal) <= 0.5
    assert made.kept_counts[0] / SIZES[0] > made.kept_counts[2] / SIZES[2]


def test_criteria_are_compared_by_plans_that_need_no_measurements() -> None:
    class Tried(Stopwatch, ToyEvidence):
        trials = 0

        def trial(self, removed: Any, **_: Any) -> SampleScores:
            self.trials += 1
            return SampleScores(np.full(8, float(len(removed))), np.zeros(8), np.arange(8))

        def original(self, part: str) -> SampleScores:
            assert part == "select"
            return SampleScores(np.ones(8), np.zeros(8), np.arange(8))

    watch = Tried(chain([16, *SIZES, 16]), smooth)
    rules = StaticStrategy(granularity=Granularity.CHANNEL, criterion="auto")
    target = Target(kind=TargetKind.LATENCY_RATIO, value=0.6)
    made = plan_structure(watch.toy.input(), rules, target, 0, evidence=watch)
    assert made.choice is not None
    assert watch.trials > 3
    assert sum(one in {True, False} for one in watch.asked) <= MOST_MEASUREMENTS
    assert watch.true_ratio(made.removal) <= 0.6
