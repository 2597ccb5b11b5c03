"""Channels that are switched off in their consumers while the rest is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from helpers.structures import Toy, chain
from pruning_server.graph.surgery.cut import AxisCut
from pruning_server.pruning.dynamic.channels import Adjust, ChannelUnits
from pruning_server.pruning.strategies.static_structure import plan_structure
from pruning_server.pruning.values import StructuralPlan
from pruning_server.spec.request import Granularity, StaticStrategy, Target, TargetKind

CONFIG = StaticStrategy(granularity=Granularity.CHANNEL)
SPARSITY = 0.5


def cut_of(toy: Toy, removal: Mapping[int, Sequence[int]], *, at_producers: bool = False) -> tuple[AxisCut, ...]:
    """As `Structure.cut`: zeros where channels are used; with `at_producers` where they are made, too."""
    gone: dict[tuple[str, int], set[int]] = {}
    zeroed: dict[tuple[str, int], set[int]] = {}
    for number, channels in removal.items():
        for member in toy.groups[number].members:
            for channel in channels:
                gone.setdefault((member.tensor, member.axis), set()).update(member.coordinates[channel])
                if member.consumer or (at_producers and member.tensor.endswith("weight")):
                    zeroed.setdefault((member.tensor, member.axis), set()).update(member.coordinates[channel])
    return tuple(
        AxisCut(
            name, (), axis, toy.tensors[name].shape[axis],
            tuple(sorted(set(range(toy.tensors[name].shape[axis])) - places)),
            tuple(sorted(zeroed.get((name, axis), ()))),
        )
        for (name, axis), places in gone.items()
    )  # fmt: skip


def make(toy: Toy, *, at_producers: bool = False) -> ChannelUnits:
    structure = toy.input()
    total = sum(group.size for group in toy.groups)

    def plan(way: float, adjust: Adjust) -> StructuralPlan:
        target = Target(kind=TargetKind.SPARSITY, value=SPARSITY * way)
        return plan_structure(structure, CONFIG, target, 0, adjust=adjust)

    return ChannelUnits(
        structure,
        plan,
        lambda removal: cut_of(toy, removal, at_producers=at_producers),
        lambda removal: sum(len(channels) for channels in removal.values()) / total,
    )


def train(toy: Toy, seed: int) -> None:
    """Moves every weight a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in toy.tensors.items():
            if name.endswith("weight"):
                tensor.add_(0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator))


def removal_of(units: ChannelUnits) -> dict[int, set[int]]:
    return {number: set(channels) for number, channels in units.plan({}).removal.items()}


def test_at_first_everything_is_on() -> None:
    toy = chain([5, 8, 6, 3])
    before = {name: tensor.clone() for name, tensor in toy.tensors.items()}
    units = make(toy)
    assert units.reach.removed == 0
    assert units.reach.units == 14
    assert all(torch.equal(toy.tensors[name], tensor) for name, tensor in before.items())


def test_going_on_takes_more_by_exact_count_and_gives_nothing_back() -> None:
    toy = chain([5, 8, 6, 3])
    units, before = make(toy), {}
    for number, way in enumerate((0.3, 0.6, 0.8, 1.0)):
        train(toy, number)
        units.hold()
        units.advance(way)
        after = removal_of(units)
        assert all(channels <= after[group] for group, channels in before.items())
        assert units.reach.removed == round(SPARSITY * way * 14)
        before = after
    assert units.plan({}).achieved == units.reach.achieved == 0.5


def test_zeros_stand_in_consumers_only() -> None:
    toy = chain([5, 8, 3])
    made = toy.tensors["0.weight"].clone()
    units = make(toy)
    units.advance(1.0)
    off = sorted(removal_of(units)[0])
    on = [channel for channel in range(8) if channel not in off]
    assert torch.equal(toy.tensors["0.weight"], made)
    assert bool((toy.tensors["1.weight"][:, off] == 0).all())
    assert bool((toy.tensors["1.weight"][:, on] != 0).all())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_exchange_keeps_every_groups_count_and_starts_from_zero(share: float) -> None:
    toy = chain([5, 12, 10, 3])
    units = make(toy)
    units.advance(1.0)
    before = removal_of(units)
    gradients = {name: torch.ones_like(tensor, dtype=torch.float32) for name, tensor in toy.tensors.items()}
    came_back = units.exchange(share, gradients.get)
    after = removal_of(units)
    assert {number: len(gone) for number, gone in after.items()} == {n: len(gone) for n, gone in before.items()}
    assert came_back == sum(len(before[number] - after[number]) for number in before)
    for number, gone in before.items():
        back = sorted(gone - after[number])
        consumer = toy.tensors[f"{number + 1}.weight"]
        assert bool((consumer[:, sorted(after[number])] == 0).all())
        assert bool((consumer[:, back] == 0).all())
    units.hold()
    if share == 0.0:
        assert after == before


def test_the_gate_with_the_steepest_slope_comes_back() -> None:
    toy = chain([4, 6, 3])
    units = make(toy)
    values = toy.tensors["1.weight"].clone()
    units.advance(1.0)
    off = sorted(removal_of(units)[0])
    gradient = torch.zeros(3, 6)
    # Along the weights as they were, one gate is steep; across them, a large gradient says nothing.
    steep, other = off[1], off[0]
    gradient[:, steep] = values[:, steep]
    across = torch.linalg.cross(values[:, other], torch.tensor([1.0, 2.0, 3.0]))
    gradient[:, other] = 100 * across
    assert abs(float((across * values[:, other]).sum())) < 1e-3 * float((values[:, steep] ** 2).sum())
    assert units.exchange(0.4, {"1.weight": gradient}.get) == 1
    assert removal_of(units)[0] & set(off) == set(off) - {steep}


def test_without_a_gradient_nothing_moves() -> None:
    toy = chain([4, 6, 3])
    units = make(toy)
    units.advance(1.0)
    before = removal_of(units)
    assert units.exchange(0.5, lambda _: None) == 0
    assert removal_of(units) == before


def test_producers_that_were_zeroed_get_back_what_they_had() -> None:
    toy = chain([4, 8, 3])
    made = toy.tensors["0.weight"].clone()
    units = make(toy, at_producers=True)
    units.advance(1.0)
    off = sorted(removal_of(units)[0])
    assert bool((toy.tensors["0.weight"][off] == 0).all())
    gradients = {name: torch.ones_like(tensor, dtype=torch.float32) for name, tensor in toy.tensors.items()}
    assert units.exchange(1.0, gradients.get) > 0
    back = sorted(set(off) - removal_of(units)[0])
    assert torch.equal(toy.tensors["0.weight"][back], made[back])
    assert bool((toy.tensors["1.weight"][:, back] == 0).all())


def test_what_is_chosen_anew_was_free_to_grow() -> None:
    toy = chain([4, 8, 3])
    units = make(toy, at_producers=True)
    units.reselect(1.0)
    first = sorted(removal_of(units)[0])
    with torch.no_grad():  # Nothing held them.
        toy.tensors["0.weight"][first] = 50.0
        toy.tensors["1.weight"][:, first] = 50.0
    units.reselect(1.0)
    assert removal_of(units)[0].isdisjoint(first)
    assert bool((toy.tensors["0.weight"][first] == 50.0).all())
    assert bool((toy.tensors["1.weight"][:, first] == 50.0).all())


def test_it_goes_back_to_what_was_off() -> None:
    toy = chain([5, 8, 6, 3])
    units = make(toy)
    units.advance(0.4)
    before, go_back = removal_of(units), units.remember()
    values = {name: tensor.clone() for name, tensor in toy.tensors.items()}
    units.advance(1.0)
    for name, tensor in toy.tensors.items():
        tensor.copy_(values[name])
    go_back()
    units.hold()
    assert removal_of(units) == before
    assert all(torch.equal(toy.tensors[name], tensor) for name, tensor in values.items())
