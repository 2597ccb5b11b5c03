"""Static pruning: thresholds, exact sparsities, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch

from pruning_server.errors import InvalidRequestError, JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.graph.values import WeightKind
from pruning_server.pruning import catalogue
from pruning_server.pruning.strategies import get
from pruning_server.pruning.values import PruningPlan, ScoredInput
from pruning_server.spec.request import Granularity, Scope, StaticStrategy, Target, TargetKind


def weight(name: str, values: list[float], dtype: torch.dtype = torch.float32) -> ScoredInput:
    return ScoredInput(name, name, WeightKind.LINEAR, torch.tensor(values, dtype=dtype))


def plan(weights: list[ScoredInput], kind: TargetKind, value: float, **config: object) -> PruningPlan:
    return get("static").plan(weights, StaticStrategy(**config), Target(kind=kind, value=value), 0)


def threshold(weights: list[ScoredInput], value: float) -> PruningPlan:
    return plan(weights, TargetKind.THRESHOLD, value)


def test_a_threshold_removes_what_is_below_and_nothing_else() -> None:
    made = threshold([weight("a", [0.5, -0.5, 0.499, -0.499, 0.0, 2.0])], 0.5)
    assert made.masks["a"].removed.tolist() == [False, False, True, True, True, False]
    assert made.removed_weights == 3
    assert made.notes == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
def test_a_weight_that_was_set_to_the_threshold_stays_in_every_type(dtype: torch.dtype, value: float) -> None:
    stored = torch.tensor(value, dtype=dtype)
    below = torch.nextafter(stored.double(), torch.tensor(0.0).double()) if dtype is torch.float64 else stored * 0.98
    given = ScoredInput("a", "a", WeightKind.CONV, torch.stack([stored, -stored, below.to(dtype)]))
    assert threshold([given], value).masks["a"].removed.tolist() == [False, False, True]


def test_a_threshold_below_the_type_s_smallest_number_still_counts_zeros() -> None:
    made = threshold([weight("a", [0.0, 1.0], torch.float16)], 1e-30)
    assert made.masks["a"].removed.tolist() == [True, False]


def test_a_threshold_below_every_weight_removes_nothing_and_says_so() -> None:
    made = threshold([weight("a", [0.5, 0.7])], 0.1)
    assert made.removed_weights == 0
    assert "0.5 to 0.7" in made.notes[0]


def test_a_threshold_above_every_weight_is_refused_with_thresholds_that_work() -> None:
    weights = [weight("a", [0.123456789, 0.05]), weight("b", [0.98765432, 0.4])]
    with pytest.raises(JobFailureError) as refused:
        threshold(weights, 3.0)
    assert refused.value.reason is Reason.EVERYTHING_PRUNED
    everywhere, anywhere = (float(number) for number in re.findall(r"at most (\S+) leaves", refused.value.message))
    made = threshold(weights, everywhere)
    assert all(mask.removed_count < mask.numel for mask in made.masks.values())
    assert threshold(weights, anywhere).removed_weights == 3
    assert everywhere == pytest.approx(0.1234)


def test_weights_that_are_all_zero_are_refused_with_another_advice() -> None:
    with pytest.raises(JobFailureError, match="all of them are 0 already"):
        threshold([weight("a", [0.0, 0.0])], 0.1)


def test_a_layer_that_loses_everything_is_named() -> None:
    made = threshold([weight("a", [0.1, 0.2]), weight("b", [1.0, 2.0])], 0.5)
    assert "1 of 2 weights are entirely 0 (a)" in made.notes[0]


def test_a_criterion_has_no_say_in_a_threshold_and_the_plan_says_so() -> None:
    made = plan([weight("a", [0.1, 0.9])], TargetKind.THRESHOLD, 0.5, criterion="random")
    assert made.masks["a"].removed.tolist() == [True, False]
    assert "random" in made.notes[0]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_out_of_range_is_an_invalid_request(value: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"spec\.threshold"):
        threshold([weight("a", [1.0])], value)


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0, float("nan")])
def test_a_sparsity_out_of_range_is_an_invalid_request(value: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"spec\.sparsity"):
        plan([weight("a", [1.0])], TargetKind.SPARSITY, value)


def test_a_sparsity_that_leaves_nothing_is_refused_with_one_that_works() -> None:
    weights = [weight("a", [float(n) for n in range(1, 8)])]
    with pytest.raises(JobFailureError) as refused:
        plan(weights, TargetKind.SPARSITY, 0.999)
    assert refused.value.reason is Reason.EVERYTHING_PRUNED
    most = float(refused.value.message.rpartition(" ")[2])
    assert plan(weights, TargetKind.SPARSITY, most).removed_weights == 6


def test_global_competition_spares_a_layer_of_large_weights_and_layers_by_themselves_do_not() -> None:
    weights = [weight("small", [0.1, 0.2, 0.3, 0.4]), weight("large", [10.0, 20.0, 30.0, 40.0])]
    together = plan(weights, TargetKind.SPARSITY, 0.5)
    apart = plan(weights, TargetKind.SPARSITY, 0.5, scope=Scope.LAYER)
    assert [mask.removed_count for mask in together.masks.values()] == [4, 0]
    assert [mask.removed_count for mask in apart.masks.values()] == [2, 2]


def test_weights_of_several_types_compete() -> None:
    weights = [weight("a", [0.1, 4.0], torch.float16), weight("b", [0.2, 3.0], torch.float64)]
    assert [mask.removed.tolist() for mask in plan(weights, TargetKind.SPARSITY, 0.5).masks.values()] == [
        [True, False],
        [True, False],
    ]


def test_planning_reads_only() -> None:
    given = weight("a", [0.1, 0.2, 0.3])
    before = given.tensor.clone()
    plan([given], TargetKind.SPARSITY, 0.5)
    threshold([given], 0.25)
    assert torch.equal(given.tensor, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [TargetKind.THRESHOLD, TargetKind.SPARSITY])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float, kind: TargetKind) -> None:
    with pytest.raises(JobFailureError, match=r"b has 1 of 2") as refused:
        plan([weight("a", [1.0, 0.1]), weight("b", [bad, 0.1])], kind, 0.5)
    assert refused.value.reason is Reason.MODEL_NOT_FINITE


def test_without_weights_nothing_is_prunable() -> None:
    with pytest.raises(JobFailureError) as refused:
        plan([], TargetKind.SPARSITY, 0.5)
    assert refused.value.reason is Reason.NOTHING_PRUNABLE


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in TargetKind
        if kind not in {TargetKind.THRESHOLD, TargetKind.SPARSITY, TargetKind.PARAMETER_RATIO}
    ],
)
def test_other_targets_are_named_as_not_implemented(kind: TargetKind) -> None:
    with pytest.raises(NotImplementedFeatureError, match=kind.value):
        plan([weight("a", [1.0])], kind, 0.5)


def test_other_granularities_and_strategies_are_named_as_not_implemented() -> None:
    with pytest.raises(NotImplementedFeatureError, match="channel"):
        plan([weight("a", [1.0])], TargetKind.SPARSITY, 0.5, granularity=Granularity.CHANNEL)
    with pytest.raises(NotImplementedFeatureError, match="dynamic"):
        get("dynamic")


def test_the_catalogue_lists_every_strategy_of_the_api_and_agrees_with_the_registry() -> None:
    listed = {info.name: info for info in catalogue()}
    assert set(listed) == {"static", "dynamic", "conditional"}
    for info in listed.values():
        assert info.available
        assert info.granularities
        assert info.targets
        assert info.criteria or info.features
    assert get("static")
