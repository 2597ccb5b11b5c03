"""Scores of channels: what counts, what does not, and what all criteria hold."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from helpers.structures import Toy, chain, each, scaled, shuffled
from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.pruning import criteria
from pruning_server.pruning.importance import find_scored, score_channels, slices_of

# Those that need nothing but weights; `criteria/` walks the registry.
EVERY = pytest.mark.parametrize("name", ["l1", "l2", "lamp", "fpgm", "random"])
WEIGHTED = ["l1", "l2", "fpgm"]


def scores(toy: Toy, name: str = "l1", seed: int = 3) -> dict[int, torch.Tensor]:
    given = toy.input()
    scored = find_scored(dict(enumerate(toy.groups)), given.tensors, given.scored)
    return score_channels(scored, given.tensors, criteria.get(name), seed)


@EVERY
def test_every_channel_has_one_score_that_is_finite_and_not_negative(name: str) -> None:
    toy = chain([4, 7, 5, 3])
    before = {key: one.clone() for key, one in toy.tensors.items()}
    for number, found in scores(toy, name).items():
        assert found.shape == (toy.groups[number].size,)
        assert found.dtype is torch.float64
        assert bool(torch.isfinite(found).all())
        assert bool((found >= 0).all())
    assert all(torch.equal(toy.tensors[key], before[key]) for key in before)


@EVERY
def test_the_same_seed_gives_the_same_scores(name: str) -> None:
    one, other = scores(chain([4, 7, 5, 3]), name), scores(chain([4, 7, 5, 3]), name)
    assert all(torch.equal(one[number], other[number]) for number in one)


@EVERY
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**30])
def test_scale_says_nothing(name: str, factor: float) -> None:
    """Exact for powers of two; the l2 score's square stays exact as well."""
    one, other = scores(chain([4, 7, 5, 3]), name), scores(scaled(chain([4, 7, 5, 3]), factor), name)
    assert all(torch.allclose(one[number], other[number], rtol=1e-12, atol=0.0) for number in one)


@EVERY
def test_a_group_s_scores_do_not_depend_on_the_other_groups(name: str) -> None:
    toy = chain([4, 7, 5, 3])
    alone = scores(Toy(toy.tensors, toy.groups[:1]), name)
    assert torch.equal(alone[0], scores(toy, name)[0])


def test_the_score_is_the_sum_over_producers_and_consumers_relative_to_the_mean() -> None:
    toy = chain([4, 6, 3], width=2)
    rows, columns = toy.tensors["0.weight"].double().abs(), toy.tensors["1.weight"].double().abs()
    sums = rows.sum(dim=1).reshape(6, 2).sum(dim=1) + columns.sum(dim=0).reshape(6, 2).sum(dim=1)
    assert torch.allclose(scores(toy)[0], sums / sums.mean(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", WEIGHTED)
def test_means_of_groups_that_are_whole_axes_are_1(name: str) -> None:
    for found in scores(chain([4, 7, 5, 3]), name).values():
        assert found.mean().item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", WEIGHTED)
def test_groups_of_one_channel_compare_with_their_layer(name: str) -> None:
    """A mean over themselves would make them all equal."""
    apart = torch.cat(list(scores(shuffled(9), name).values()))
    together = scores(chain([3, 9, 2]), name)[0]
    assert torch.allclose(apart, together, rtol=1e-12, atol=0.0)


def test_only_the_named_weights_count() -> None:
    toy, other = chain([4, 7, 3]), chain([4, 7, 3])
    other.tensors["0.bias"][0] = float("nan")
    other.tensors["0.steps"] += 1000
    assert torch.equal(scores(toy)[0], scores(other)[0])


def test_integers_never_count_and_a_group_without_weights_has_no_scores() -> None:
    toy = chain([4, 7, 3])
    given = dataclasses.replace(toy.input(), scored=frozenset({"0.steps"}))
    assert find_scored(dict(enumerate(toy.groups)), given.tensors, given.scored) == {}


def test_a_tied_weight_counts_once_under_any_of_its_names() -> None:
    toy = chain([4, 7, 3])
    first, *rest = toy.groups[0].members
    tied = ChannelGroup(7, (dataclasses.replace(first, aliases=("head.weight",)), *rest))
    plain = scores(toy)[0]
    for names in ({"0.weight", "1.weight", "head.weight"}, {"head.weight", "1.weight"}):
        scored = find_scored({0: tied}, toy.tensors.__getitem__, frozenset(names))
        found = score_channels(scored, toy.tensors.__getitem__, criteria.get("l1"), 3)
        assert torch.equal(found[0], plain)


def test_slices_are_rows_of_channels() -> None:
    tensor = torch.arange(24.0).reshape(2, 4, 3)
    found = slices_of(Member("a", (), 1, consumer=False, coordinates=((0, 2), (1, 3))), tensor)
    assert found.shape == (2, 12)
    assert found.sum(dim=1).tolist() == [tensor[:, [0, 2]].sum(), tensor[:, [1, 3]].sum()]


def test_random_draws_once_per_channel_and_never_the_same_for_two_groups() -> None:
    toy = chain([2, 2000, 2])
    half = [
        ChannelGroup(
            1000, tuple(dataclasses.replace(one, coordinates=each(1000, start)) for one in toy.groups[0].members)
        )
        for start in (0, 1000)
    ]
    found = scores(Toy(toy.tensors, tuple(half)), "random")
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], scores(Toy(toy.tensors, tuple(half)), "random", seed=4)[0])
    # Uniform on [0, 1]: variance 1/12; its estimate from 1000 draws has a standard error of 0.0024.
    assert found[0].var().item() == pytest.approx(1 / 12, abs=0.01)


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(name: str, bad: float) -> None:
    toy = chain([4, 7, 3])
    toy.tensors["1.weight"][0, 0] = bad
    with pytest.raises(JobFailureError, match=r"1\.weight") as refused:
        scores(toy, name)
    assert refused.value.reason is Reason.MODEL_NOT_FINITE


def test_scores_that_overflow_are_refused_and_zeros_are_zero() -> None:
    toy = chain([4, 7, 3])
    huge = Toy({name: one.double() * 0 + 1e200 for name, one in toy.tensors.items()}, toy.groups)
    with pytest.raises(JobFailureError, match="too large") as refused:
        scores(huge, "l2")
    assert refused.value.reason is Reason.MODEL_NOT_FINITE
    assert scores(scaled(toy, 0.0))[0].tolist() == [0.0] * 7
