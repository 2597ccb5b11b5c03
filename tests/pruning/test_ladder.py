"""The order of removals: floors, multiples, and fair shares."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.structures import Toy, chain, shuffled
from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.pruning.allocation.orders import order_globally, order_per_layer
from pruning_server.pruning.ladder import SOFT_FLOOR, Ladder, build_ladder, multiple_of
from pruning_server.spec.request import ChannelConstraints, Scope

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def ladder_of(
    toy: Toy, scope: Scope = Scope.GLOBAL, scores: dict[int, torch.Tensor] | None = None, **rules: int
) -> Ladder:
    if scores is None:
        generator = torch.Generator().manual_seed(1)
        scores = {number: torch.rand(one.size, generator=generator) for number, one in enumerate(toy.groups)}
    rules = {"multiple": 1, **rules}
    order = order_per_layer(scores) if scope is Scope.LAYER else order_globally(scores)
    soft_floor = 0.0 if scope is Scope.LAYER else SOFT_FLOOR
    return build_ladder(
        dict(enumerate(toy.groups)), order, toy.lengths, ChannelConstraints(**rules), soft_floor=soft_floor
    )


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES,
    scope=st.sampled_from([Scope.GLOBAL, Scope.LAYER]),
    least=st.integers(1, 6),
    multiple=st.integers(1, 9),
    data=st.data(),
)
def test_removals_are_nested_and_keep_floors_and_multiples(
    sizes: list[int], scope: Scope, least: int, multiple: int, data: st.DataObject
) -> None:
    toy = chain([3, *sizes, 2])
    ladder = ladder_of(toy, scope, min_channels=least, multiple=multiple)
    assert len(ladder) == sum(max(0, size - least) for size in sizes)
    steps = data.draw(st.integers(0, len(ladder)))
    counts = ladder.counts(steps)
    assert sum(counts.values()) <= steps
    for number, size in enumerate(sizes):
        kept = size - counts[number]
        assert kept >= min(size, least)
        assert kept == size or kept % multiple == 0
    more = ladder.removal(ladder.counts(min(steps + 3, len(ladder))))
    for number, channels in ladder.removal(counts).items():
        assert list(channels) == sorted(set(channels))
        assert len(channels) == counts[number]
        assert set(channels) <= set(more[number])
    assert all(size >= 1 for shape in toy.shapes(ladder.removal(counts)).values() for size in shape)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, fraction=st.floats(0, 1))
def test_in_layers_every_group_loses_the_same_fraction_but_for_rounding(sizes: list[int], fraction: float) -> None:
    ladder = ladder_of(chain([3, *sizes, 2]), Scope.LAYER)
    counts = ladder.counts(round(fraction * sum(sizes)))
    for number, size in enumerate(sizes):
        expected = fraction * size
        assert min(math.floor(expected), size - 1) - 1 <= counts[number] <= math.ceil(expected) + 1


def test_globally_the_lowest_go_first_and_of_equals_the_first() -> None:
    toy = chain([3, 3, 3, 2])
    scores = {0: torch.tensor([0.5, 0.1, 0.5]), 1: torch.tensor([0.2, 0.5, 0.9])}
    ladder = ladder_of(toy, scores=scores)
    assert ladder.steps == (0, 1, 0, 1)
    assert ladder.channels == {0: (1, 0), 1: (0, 1)}


def test_globally_no_layer_goes_below_a_tenth_while_others_have_more() -> None:
    toy = chain([3, 50, 50, 2])
    scores = {0: torch.linspace(0.0, 0.1, 50), 1: torch.linspace(1.0, 2.0, 50)}
    ladder = ladder_of(toy, scores=scores)
    assert ladder.soft_steps == 90
    assert ladder.counts(90) == {0: 45, 1: 45}
    assert ladder.counts(len(ladder)) == {0: 49, 1: 49}
    assert ladder.counts(45) == {0: 45, 1: 0}


def test_groups_that_share_their_axes_share_the_floor() -> None:
    toy = shuffled(30)
    ladder = ladder_of(toy, min_channels=2)
    assert len(ladder) == 28
    assert ladder.soft_steps == 27
    assert toy.shapes(ladder.removal(ladder.counts(28)))["0.weight"] == [2, 3]


def test_a_group_that_shares_its_axes_loses_its_last_channel_last() -> None:
    toy = chain([3, 8, 2])
    members = toy.groups[0].members
    halves = tuple(
        ChannelGroup(
            4,
            tuple(
                type(one)(one.tensor, (), one.axis, one.consumer, one.coordinates[start : start + 4]) for one in members
            ),
        )
        for start in (0, 4)
    )
    scores = {0: torch.zeros(4), 1: torch.ones(4)}
    ladder = ladder_of(Toy(toy.tensors, halves), scores=scores)
    assert ladder.steps == (0, 0, 0, 1, 1, 1, 0)
    assert ladder.soft_steps == 6


@pytest.mark.parametrize(
    ("size", "width", "kind", "multiple", "expected"),
    [
        (63, 1, "channel", None, 1),
        (64, 1, "channel", None, 8),
        (64, 1, "channel", 1, 1),
        (16, 4, "channel", None, 2),  # 16 convolution groups of 4: 64 channels, of which 8 are 2 groups
        (15, 4, "channel", None, 1),
        (10, 8, "channel", None, 1),
        (10, 3, "channel", 6, 2),
        (12, 64, "head", None, 1),
        (12, 1, "head", 8, 1),
    ],
)
def test_multiples(size: int, width: int, kind: str, multiple: int | None, expected: int) -> None:
    group = chain([2, size, 2], width=width, kind=kind).groups[0]
    assert multiple_of(group, ChannelConstraints(multiple=multiple)) == expected


def test_floors_count_channels_and_of_heads_the_heads() -> None:
    assert ladder_of(chain([2, 10, 2], width=4), min_channels=8).counts(99) == {0: 8}
    assert ladder_of(chain([2, 10, 2], width=4, kind="head"), min_channels=8).counts(99) == {0: 2}


def test_a_group_smaller_than_its_multiple_stays_whole() -> None:
    ladder = ladder_of(chain([2, 6, 20, 2]), multiple=8)
    assert ladder.counts(len(ladder)) == {0: 0, 1: 12}
    assert ladder.removal(ladder.counts(len(ladder))).keys() == {1}


def test_in_layers_fractions_are_rounded_to_the_nearest_channel() -> None:
    ladder = ladder_of(chain([3, 3, 3, 10, 2]), Scope.LAYER)
    assert ladder.counts(4) == {0: 1, 1: 1, 2: 2}  # a quarter: 0.75, 0.75 and 2.5
