"""Single weights that are switched off and come back."""

from __future__ import annotations

import pytest
import torch

from pruning_server.graph.values import WeightKind
from pruning_server.pruning.dynamic.weights import WeightUnits, by_count, by_pattern
from pruning_server.pruning.values import ScoredInput
from pruning_server.spec.request import NmPattern, Scope


def make(sparsity: float, scope: Scope = Scope.GLOBAL) -> tuple[WeightUnits, list[ScoredInput]]:
    generator = torch.Generator().manual_seed(0)
    weights = [
        ScoredInput("a", "a", WeightKind.LINEAR, torch.randn(6, 10, generator=generator)),
        ScoredInput("b", "b", WeightKind.LINEAR, 10 * torch.randn(4, 5, generator=generator)),
    ]
    return WeightUnits(weights, lambda: [one.tensor.abs() for one in weights], by_count(sparsity, scope)), weights


def off(units: WeightUnits, name: str) -> torch.Tensor:
    return units.plan({}).masks[name].removed


def test_going_on_takes_more_and_gives_nothing_back() -> None:
    units, weights = make(0.5)
    before = {one.name: off(units, one.name) for one in weights}
    for way in (0.2, 0.5, 0.5, 1.0):
        with torch.no_grad():
            for one in weights:
                one.tensor.add_(1.0)  # What was off is no longer the smallest.
        units.hold()
        units.advance(way)
        after = {one.name: off(units, one.name) for one in weights}
        assert all(bool((after[name] | ~before[name]).all()) for name in after)
        assert units.reach.removed == round(0.5 * way * 80)
        before = after
    assert units.reach.sparsity == units.reach.achieved == 0.5


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_an_exchange_keeps_every_layers_count(share: float) -> None:
    units, weights = make(0.6, Scope.LAYER)
    units.advance(1.0)
    before = {one.name: off(units, one.name) for one in weights}
    came_back = units.exchange(share, lambda name: torch.ones_like(before[name], dtype=torch.float32))
    after = {one.name: off(units, one.name) for one in weights}
    assert came_back == sum(int((before[name] & ~after[name]).sum()) for name in after)
    for one in weights:
        assert int(after[one.name].sum()) == int(before[one.name].sum()) == round(0.6 * one.tensor.numel())
        # What went is 0 at once; what came back starts there.
        assert bool((one.tensor[after[one.name] | before[one.name]] == 0).all())
    assert (came_back > 0) == (share >= 0.05)


def test_the_smallest_makes_way_for_the_steepest() -> None:
    weight = torch.tensor([[0.1, 0.2, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    units = WeightUnits(
        [ScoredInput("w", "w", WeightKind.LINEAR, weight)], lambda: [weight.abs()], by_count(0.25, Scope.GLOBAL)
    )
    units.advance(1.0)
    gradient = torch.tensor([[1.0, -9.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]])
    assert units.exchange(0.2, lambda _: gradient) == 1
    # 3.0 is the smallest that is left; of what is off then, the second has the largest gradient.
    assert off(units, "w").tolist() == [[True, False, True, False, False, False, False, False]]
    assert weight.tolist() == [[0.0, 0.0, 0.0, 4.0, 5.0, 6.0, 7.0, 8.0]]


def test_what_is_dropped_may_be_what_the_loss_asks_for_most() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    units = WeightUnits(
        [ScoredInput("w", "w", WeightKind.LINEAR, weight)], lambda: [weight.abs()], by_count(0.25, Scope.GLOBAL)
    )
    units.advance(1.0)
    assert units.exchange(0.4, lambda _: torch.tensor([[0.1, 5.0, 0.0, 0.0]])) == 0
    assert weight.tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_without_a_gradient_nothing_moves() -> None:
    units, weights = make(0.5)
    units.advance(1.0)
    before = off(units, "a")
    assert units.exchange(0.3, lambda _: None) == 0
    assert torch.equal(off(units, "a"), before)
    # Gradients that are no numbers choose something, and counts stay.
    units.exchange(0.3, lambda name: torch.full_like(weights[name == "b"].tensor, float("nan")))
    assert units.reach.removed == 40


def test_it_goes_back_to_what_was_off() -> None:
    units, _ = make(0.5)
    units.advance(0.4)
    before, go_back = off(units, "a"), units.remember()
    units.advance(1.0)
    go_back()
    assert torch.equal(off(units, "a"), before)
    assert units.reach.removed == 16


def test_a_pattern_is_approached_in_whole_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 16, generator=generator)
    units = WeightUnits(
        [ScoredInput("w", "w", WeightKind.LINEAR, weight)],
        lambda: [weight.abs()],
        by_pattern((1,), NmPattern(n=1, m=4)),
    )
    seen = []
    for way in (0.0, 0.2, 0.5, 0.9, 1.0):
        units.advance(way)
        blocks = off(units, "w").reshape(-1, 4).sum(dim=1)
        assert bool((blocks == blocks[0]).all())
        seen.append(int(blocks[0]))
        with torch.no_grad():
            weight += torch.randn(weight.shape, generator=generator)
        units.hold()
    assert seen == [0, 1, 2, 3, 3]
