"""Sensitivity: what harms least per cost goes first, whatever the trials say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.structures import Toy, chain, shuffled
from helpers.toy_evidence import ToyEvidence
from pruning_server.errors import JobFailureError
from pruning_server.pruning.allocation.sensitivity import (
    EXPLODED,
    FRACTIONS,
    Probes,
    measure_sensitivity,
    order_by_harm,
)
from pruning_server.pruning.evidence import SampleScores
from pruning_server.pruning.strategies import plan_structure
from pruning_server.pruning.strategies.static_structure import order_structure
from pruning_server.pruning.values import StructuralPlan
from pruning_server.spec.request import ChannelConstraints, Granularity, Scope, StaticStrategy, Target, TargetKind

SIZES = [6, 20, 9, 33, 4]


def scores_of(toy: Toy) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {number: torch.rand(one.size, generator=generator) for number, one in enumerate(toy.groups)}


def probes_of(toy: Toy, harms: Sequence[float], asked: list[Any] | None = None) -> Probes:
    """The harm of a group is its number's times the square of the fraction that is gone."""

    def harm(removal: Mapping[int, Sequence[int]]) -> float:
        if asked is not None:
            asked.append(removal)
        return sum(harms[number] * (len(gone) / toy.groups[number].size) ** 2 for number, gone in removal.items())

    return Probes(harm, lambda removal: toy.cost(removal).parameters)


class Trials(ToyEvidence):
    """Divergence as the sum of each group's harm."""

    def __init__(self, toy: Toy, harms: Sequence[float]) -> None:
        super().__init__(toy)
        self.probes = probes_of(toy, harms)

    def original(self, part: str) -> SampleScores:
        assert part == "select"
        return SampleScores(np.zeros(8), np.zeros(8), np.arange(8))

    def divergence(self, removed: Any, **_: Any) -> float:
        return self.probes.harm(removed)


def plan(toy: Toy, kind: TargetKind, value: float, harms: Sequence[float], **channels: int) -> StructuralPlan:
    rules = StaticStrategy(
        granularity=Granularity.CHANNEL, scope=Scope.SENSITIVITY, channels=ChannelConstraints(**channels)
    )
    return plan_structure(toy.input(), rules, Target(kind=kind, value=value), 3, evidence=Trials(toy, harms))


# --- Order ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    harms=st.lists(st.floats(0, 1e6) | st.just(math.nan) | st.just(math.inf), min_size=4, max_size=4),
)
def test_every_channel_has_its_turn_and_within_a_layer_scores_decide(sizes: list[int], harms: list[float]) -> None:
    toy = chain([3, *sizes, 2])
    scores = scores_of(toy)
    order = order_by_harm(measure_sensitivity(dict(enumerate(toy.groups)), scores, probes_of(toy, harms)))
    assert sorted(order) == [(number, channel) for number, size in enumerate(sizes) for channel in range(size)]
    for number, line in scores.items():
        mine = [channel for owner, channel in order if owner == number]
        assert mine == torch.argsort(line, stable=True).tolist()


def test_a_layer_that_suffers_more_keeps_more() -> None:
    toy = chain([3, 20, 20, 3])
    layers = measure_sensitivity(dict(enumerate(toy.groups)), scores_of(toy), probes_of(toy, [1.0, 5.0]))
    for count in range(4, 36):
        taken = [number for number, _ in order_by_harm(layers)[:count]]
        assert taken.count(0) >= taken.count(1)


def test_of_equal_harm_what_saves_more_goes_first() -> None:
    toy = chain([100, 20, 3, 20, 3])
    order = order_by_harm(measure_sensitivity(dict(enumerate(toy.groups)), scores_of(toy), probes_of(toy, [1, 1, 1])))
    taken = [number for number, _ in order[:16]]
    assert taken.count(0) > 3 * taken.count(2)


def test_what_is_equal_goes_evenly() -> None:
    toy = chain([3, 20, 40, 2])
    order = order_by_harm(measure_sensitivity(dict(enumerate(toy.groups)), scores_of(toy), probes_of(toy, [0, 0])))
    taken = [number for number, _ in order[:30]]
    assert taken.count(0) == pytest.approx(10, abs=1)


def test_reluctance_spares_a_layer() -> None:
    toy = chain([3, 20, 20, 3])
    layers = measure_sensitivity(dict(enumerate(toy.groups)), scores_of(toy), probes_of(toy, [1.0, 1.0]))
    assert {number for number, _ in order_by_harm(layers, {0: 1e6})[:20]} == {1}


# --- Trials -----------------------------------------------------------------------------------------------------------


def test_each_layer_is_tried_alone_at_a_few_fractions_and_never_without_all_of_it() -> None:
    toy = chain([3, 20, 40, 2])
    asked: list[Mapping[int, Sequence[int]]] = []
    layers = measure_sensitivity(dict(enumerate(toy.groups)), scores_of(toy), probes_of(toy, [1.0, 2.0], asked))
    assert [layer.trials for layer in layers] == [len(FRACTIONS)] * 2
    assert sorted((number, len(gone)) for removal in asked for number, gone in removal.items()) == [
        (0, 5), (0, 10), (0, 15), (1, 10), (1, 20), (1, 30),
    ]  # fmt: skip
    assert all(len(removal) == 1 for removal in asked)


def test_a_layer_whose_harm_explodes_is_left_after_one_trial() -> None:
    toy = chain([3, 20, 20, 20, 2])
    layers = measure_sensitivity(dict(enumerate(toy.groups)), scores_of(toy), probes_of(toy, [1.0, 1.0, 2 * EXPLODED]))
    assert [layer.trials for layer in layers] == [3, 3, 1]
    assert list(layers[2].harms) == sorted(layers[2].harms)
    taken = [number for number, _ in order_by_harm(layers)[:30]]
    assert 3 * taken.count(2) < min(taken.count(0), taken.count(1))


def test_groups_that_share_all_their_axes_are_one_layer() -> None:
    toy = shuffled(30)
    asked: list[Any] = []
    probes = Probes(lambda removal: asked.append(removal) or 0.1 * len(removal), lambda removal: 30.0 - len(removal))
    layers = measure_sensitivity(dict(enumerate(toy.groups)), scores_of(toy), probes)
    assert len(layers) == 1
    assert [len(removal) for removal in asked] == [8, 15, 22]


# --- Plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO])
def test_targets_are_met_with_the_floors_kept_and_the_same_twice(kind: TargetKind) -> None:
    toy, harms = chain([3, *SIZES, 2]), [1.0, 8.0, 0.0, 3.0, 1.0]
    made = plan(toy, kind, 0.5, harms, min_channels=2)
    if kind is TargetKind.SPARSITY:
        assert made.removed_channels == round(0.5 * sum(SIZES))
    else:
        assert toy.cost(made.removal).parameters <= 0.5 * toy.cost({}).parameters
    assert all(kept >= 2 for kept in made.kept_counts.values())
    assert plan(toy, kind, 0.5, harms, min_channels=2) == made
    assert "sensitivity was measured in" in made.notes[0]


def test_more_is_removed_of_the_same_for_a_harder_target() -> None:
    toy, harms = chain([3, *SIZES, 2]), [1.0, 8.0, 0.5, 3.0, 1.0]
    low, high = (plan(toy, TargetKind.MACS_RATIO, value, harms).removal for value in (0.7, 0.4))
    assert all(set(channels) <= set(high[number]) for number, channels in low.items())


def test_without_data_it_is_an_error_of_ours() -> None:
    toy = chain([3, 8, 2])
    rules = StaticStrategy(granularity=Granularity.CHANNEL, scope=Scope.SENSITIVITY)
    with pytest.raises(JobFailureError, match="please report this"):
        plan_structure(toy.input(), rules, Target(kind=TargetKind.SPARSITY, value=0.5), 0)


# --- Measured again, of a model of which something is off already -----------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    gone=st.lists(st.integers(0, 9), max_size=9, unique=True), harms=st.lists(st.floats(0, 1e3), min_size=2, max_size=2)
)
def test_what_is_off_goes_first_and_is_no_part_of_any_trial(gone: list[int], harms: list[float]) -> None:
    toy = chain([3, 10, 12, 2])
    off = {0: tuple(sorted(gone))} if gone else {}
    asked: list[Any] = []
    evidence = Trials(toy, harms)
    evidence.probes = probes_of(toy, harms, asked)
    rules = StaticStrategy(granularity=Granularity.CHANNEL, scope=Scope.SENSITIVITY)
    target = Target(kind=TargetKind.SPARSITY, value=0.5)
    ladder = order_structure(toy.input(), rules, target, 3, evidence, off=off)
    assert set(ladder.channels[0][: len(gone)]) == set(gone)
    assert all(set(off.get(0, ())) <= set(removal.get(0, ())) for removal in asked)
    plan = plan_structure(toy.input(), rules, target, 3, ladder=ladder)
    assert sum(len(channels) for channels in plan.removal.values()) == 11
