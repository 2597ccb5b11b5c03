"""Invariants that every registered criterion must hold, and the registry itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pruning_server.errors import InvalidRequestError, Reason
from pruning_server.graph.values import WeightKind
from pruning_server.pruning import criteria
from pruning_server.pruning.strategies import get
from pruning_server.pruning.values import PruningPlan, ScoredInput
from pruning_server.spec.request import Scope, StaticStrategy, Target, TargetKind

EVERY = pytest.mark.parametrize("name", criteria.names())
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def weights(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[ScoredInput]:
    generator = torch.Generator().manual_seed(11)
    shapes = {"a": (7, 5, 3, 3), "b": (64, 7), "c": (13,)}
    return [
        ScoredInput(name, name, WeightKind.LINEAR, (torch.randn(shape, generator=generator) * scale).to(dtype))
        for name, shape in shapes.items()
    ]


def plan(name: str, sparsity: float, *, seed: int = 3, scope: Scope = Scope.GLOBAL, **kinds: object) -> PruningPlan:
    target = Target(kind=TargetKind.SPARSITY, value=sparsity)
    return get("static").plan(weights(**kinds), StaticStrategy(criterion=name, scope=scope), target, seed)


def removed(made: PruningPlan) -> dict[str, torch.Tensor]:
    return {name: mask.removed for name, mask in made.masks.items()}


def equal(one: PruningPlan, other: PruningPlan) -> bool:
    return all(torch.equal(removed(one)[name], removed(other)[name]) for name in one.masks)


@EVERY
def test_scores_have_the_weight_s_shape_and_are_finite_and_not_negative(name: str) -> None:
    for dtype in DTYPES:
        for weight in weights(dtype=dtype):
            before = weight.tensor.clone()
            scores = criteria.get(name).score(weight.tensor, 5)
            assert scores.shape == weight.tensor.shape
            assert scores.dtype in {torch.float32, torch.float64}
            assert bool(torch.isfinite(scores).all())
            assert bool((scores >= 0).all())
            assert torch.equal(weight.tensor, before)


@EVERY
@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.987])
def test_the_count_is_exact(name: str, scope: Scope, sparsity: float) -> None:
    made = plan(name, sparsity, scope=scope)
    sizes = [weight.tensor.numel() for weight in weights()]
    if scope is Scope.GLOBAL:
        assert made.removed_weights == round(sparsity * sum(sizes))
    else:
        assert [mask.removed_count for mask in made.masks.values()] == [round(sparsity * size) for size in sizes]


@EVERY
def test_the_same_seed_gives_the_same_masks(name: str) -> None:
    assert equal(plan(name, 0.4), plan(name, 0.4))


@EVERY
@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_scaling_all_weights_changes_nothing(name: str, scale: float) -> None:
    assert equal(plan(name, 0.4), plan(name, 0.4, scale=scale))


@EVERY
def test_a_higher_sparsity_removes_more_of_the_same(name: str) -> None:
    low, high = removed(plan(name, 0.3)), removed(plan(name, 0.6))
    assert all(bool((high[key] | ~low[key]).all()) for key in low)


@EVERY
def test_it_names_its_source_and_says_what_it_does(name: str) -> None:
    criterion = criteria.get(name)
    assert criterion.name == name
    assert criterion.summary
    assert any(year.isdigit() and 1980 < int(year) < 2100 for year in criterion.source.replace(",", " ").split())


def test_magnitudes_remove_the_smallest() -> None:
    for name in ("l1", "l2"):
        made, given = plan(name, 0.4), {weight.name: weight.tensor for weight in weights()}
        gone = torch.cat([given[key][mask].abs() for key, mask in removed(made).items()])
        kept = torch.cat([given[key][~mask].abs() for key, mask in removed(made).items()])
        assert gone.max() <= kept.min()


def test_random_depends_on_the_seed_and_not_on_the_other_weights() -> None:
    one, other = plan("random", 0.4, seed=1), plan("random", 0.4, seed=2)
    assert not equal(one, other)
    config, target = StaticStrategy(criterion="random", scope=Scope.LAYER), Target(kind=TargetKind.SPARSITY, value=0.4)
    both = get("static").plan(weights(), config, target, 1)
    alone = get("static").plan(weights()[1:2], config, target, 1)
    assert torch.equal(both.masks["b"].removed, alone.masks["b"].removed)


def test_an_unknown_criterion_is_refused_with_the_known_names() -> None:
    with pytest.raises(InvalidRequestError, match="l1, l2, random") as refused:
        plan("taylor", 0.4)
    assert refused.value.reason is Reason.UNKNOWN_CRITERION


def test_two_criteria_of_one_name_are_an_error() -> None:
    one = criteria.get("l1")
    with pytest.raises(ValueError, match="'l1'"):
        criteria.register([one, dataclasses.replace(one, summary="another")])
