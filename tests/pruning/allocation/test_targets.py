"""Counts of channels and of single weights for ratios."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.structures import chain
from pruning_server.errors import InvalidRequestError, JobFailureError, Reason
from pruning_server.graph.values import WeightKind
from pruning_server.pruning.allocation.nonzero import mark_to_ratio
from pruning_server.pruning.allocation.targets import fewest
from pruning_server.pruning.strategies import get, plan_structure
from pruning_server.pruning.values import PruningPlan, ScoredInput
from pruning_server.spec.request import ChannelConstraints, Granularity, Scope, StaticStrategy, Target, TargetKind

BY_SCORE = [Scope.GLOBAL, Scope.LAYER]


@given(least=st.integers(0, 50), most=st.integers(0, 50))
def test_fewest_is_the_first_that_is_enough(least: int, most: int) -> None:
    assert fewest(most, lambda steps: steps >= least) == min(least, most)


# --- Rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", BY_SCORE)
@pytest.mark.parametrize("multiple", [4, 8, 16])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_what_rounding_took_in_excess_comes_back(scope: Scope, multiple: int, ratio: float) -> None:
    toy = chain([16, 32, 64, 48, 32, 16])
    rules = StaticStrategy(granularity=Granularity.CHANNEL, scope=scope, channels=ChannelConstraints(multiple=multiple))
    made = plan_structure(toy.input(), rules, Target(kind=TargetKind.MACS_RATIO, value=ratio), 0)
    whole = toy.cost({}).parameters
    assert toy.cost(made.removal).parameters / whole <= ratio
    for number, channels in made.removal.items():
        fewer = dict(made.removal) | {number: channels[: max(0, len(channels) - multiple)]}
        assert toy.cost(fewer).parameters / whole > ratio, "one bucket could have stayed"


# --- Single weights ---------------------------------------------------------------------------------------------------


def weights_of(sizes: list[int], zeros: int = 0) -> list[ScoredInput]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, size in enumerate(sizes):
        tensor = torch.randn(size, 3, generator=generator)
        tensor.view(-1)[:zeros] = 0
        found.append(ScoredInput(f"{number}.weight", str(number), WeightKind.LINEAR, tensor))
    return found


def plan(weights: list[ScoredInput], ratio: float, others: int = 0, **fields: object) -> PruningPlan:
    alive = sum(int(one.tensor.count_nonzero()) for one in weights)
    target = Target(kind=TargetKind.PARAMETER_RATIO, value=ratio)
    return get("static").plan(weights, StaticStrategy(**fields), target, 0, nonzero_parameters=alive + others)


def left_of(weights: list[ScoredInput], plan: PruningPlan) -> int:
    return sum(int((one.tensor * ~plan.masks[one.name].removed).count_nonzero()) for one in weights)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=4),
    ratio=st.floats(0.3, 1),
    others=st.integers(0, 5),
    zeros=st.integers(0, 3),
    scope=st.sampled_from(BY_SCORE),
    criterion=st.sampled_from(["l1", "random"]),
)
def test_as_many_parameters_are_left_as_may_be(
    sizes: list[int], ratio: float, others: int, zeros: int, scope: Scope, criterion: str
) -> None:
    weights = weights_of(sizes, zeros)
    alive = sum(int(one.tensor.count_nonzero()) for one in weights)
    before = others + alive
    if before - int(ratio * before) >= alive:
        with pytest.raises(JobFailureError) as refused:
            plan(weights, ratio, others, scope=scope, criterion=criterion)
        assert refused.value.reason is Reason.TARGET_UNREACHABLE
        ratio = float(refused.value.metadata["nearest"])
    made = plan(weights, ratio, others, scope=scope, criterion=criterion)
    left = left_of(weights, made)
    assert (left + others) / before <= ratio
    # Shares of layers are rounded to whole weights, so that up to one of each layer may go in excess.
    slack = 1 if scope is Scope.GLOBAL else 1 + len(sizes)
    assert (left + others + slack) / before > ratio
    assert left > 0


def test_a_ratio_goes_by_the_criterion_and_counts_what_stays() -> None:
    weights = weights_of([10, 10])
    made = plan(weights, 0.5, others=20)
    # 80 parameters, of which 40 may be left: 20 stay anyway.
    assert left_of(weights, made) == 20
    kept = torch.cat([one.tensor[~made.masks[one.name].removed].abs() for one in weights]).min()
    gone = torch.cat([one.tensor[made.masks[one.name].removed].abs() for one in weights]).max()
    assert gone <= kept


def test_a_ratio_out_of_reach_or_range_is_refused() -> None:
    weights = weights_of([10])
    with pytest.raises(JobFailureError) as refused:
        plan(weights, 0.2, others=10)
    assert refused.value.reason is Reason.TARGET_UNREACHABLE
    assert left_of(weights, plan(weights, float(refused.value.metadata["nearest"]), others=10)) >= 1
    for value in (0.0, 1.1):
        with pytest.raises(InvalidRequestError, match=r"spec\.parameter_ratio"):
            mark_to_ratio([torch.ones(3)], [torch.ones(3)], 0, value, Scope.GLOBAL)


@pytest.mark.parametrize("size", [49, 52, 97, 100])
def test_a_ratio_leaves_as_many_parameters_as_it_allows(size: int) -> None:
    others = 3
    values = torch.rand(size - others, generator=torch.Generator().manual_seed(0)) + 0.1
    for left in range(others + 1, size + 1):
        (marked,) = mark_to_ratio([values], [values], others, left / size, Scope.GLOBAL)
        assert int((~marked).sum()) + others == left
