"""Invariants of every criterion's scores of channels, and what each of them means."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from helpers.structures import Toy, chain, scaled, shuffled
from helpers.toy_evidence import ToyEvidence
from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.capture import LinearCall
from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.graph.geometry import Geometry
from pruning_server.pruning import criteria
from pruning_server.pruning.criteria import signals
from pruning_server.pruning.criteria.base import Basis, Needs
from pruning_server.pruning.criteria.elements import by_layer
from pruning_server.pruning.importance import find_scored, find_unscored, score_channels

SCORING = [name for name in criteria.names() if criteria.get(name).needs is not Needs.TRIALS]
EVERY = pytest.mark.parametrize("name", SCORING)
ON_DATA = [name for name in SCORING if criteria.get(name).needs is not Needs.NONE]
RELATIVE = ["l1", "l2", "bn_scale", "fpgm", "activation_mean"]
SIZES = [4, 7, 5, 3]


def scores(toy: Toy, name: str, seed: int = 3, evidence: ToyEvidence | None = None) -> dict[int, torch.Tensor]:
    """The toys have no normalizations: their kernels stand for scales."""
    given = toy.input()
    scored = find_scored(dict(enumerate(toy.groups)), given.tensors, given.scored)
    return score_channels(scored, given.tensors, criteria.get(name), seed, evidence or ToyEvidence(toy))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_channel_has_one_score_that_is_finite_and_not_negative(name: str, dtype: torch.dtype) -> None:
    toy = chain(SIZES)
    toy.tensors |= {key: one.to(dtype) for key, one in toy.tensors.items() if one.is_floating_point()}
    before = {key: one.clone() for key, one in toy.tensors.items()}
    found = scores(toy, name)
    assert list(found) == [0, 1]
    for number, one in found.items():
        assert one.shape == (toy.groups[number].size,)
        assert one.dtype is torch.float64
        assert bool(torch.isfinite(one).all())
        assert bool((one >= 0).all())
    assert all(torch.equal(toy.tensors[key], before[key]) for key in before)


@EVERY
def test_the_same_seed_gives_the_same_scores(name: str) -> None:
    one, other = scores(chain(SIZES), name), scores(chain(SIZES), name)
    assert all(torch.equal(one[number], other[number]) for number in one)


@EVERY
@pytest.mark.parametrize("factor", [2.0**-10, 2.0**20])
def test_scale_says_nothing(name: str, factor: float) -> None:
    one, other = scores(chain(SIZES), name), scores(scaled(chain(SIZES), factor), name)
    assert all(torch.allclose(one[number], other[number], rtol=1e-9, atol=1e-15) for number in one)


@EVERY
def test_a_group_s_scores_do_not_depend_on_the_other_groups(name: str) -> None:
    toy = chain(SIZES)
    alone = Toy(toy.tensors, toy.groups[:1])
    assert torch.equal(scores(alone, name)[0], scores(toy, name)[0])


@pytest.mark.parametrize("name", RELATIVE)
def test_means_of_groups_that_are_whole_axes_are_1(name: str) -> None:
    for found in scores(chain(SIZES), name).values():
        assert found.mean().item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", [*RELATIVE, "lamp", "taylor", "fisher", "apoz"])
def test_groups_of_one_channel_compare_with_their_layer(name: str) -> None:
    """A mean over themselves would make them all equal."""
    apart = torch.cat(list(scores(shuffled(9), name).values()))
    together = scores(chain([3, 9, 2]), name)[0]
    assert torch.allclose(apart, together, rtol=1e-12, atol=0.0)


@EVERY
def test_one_channel_alone_has_a_score(name: str) -> None:
    found = scores(chain([3, 1, 2]), name)
    assert [one.shape for one in found.values()] == [(1,)]


@EVERY
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_layers_of_equal_weights_have_scores_too(name: str, value: float) -> None:
    toy = chain([3, 6, 2])
    toy.tensors |= {key: one * 0 + value for key, one in toy.tensors.items() if one.is_floating_point()}
    found = scores(toy, name)
    if value == 0.0 and criteria.get(name).needs is Needs.GRADIENTS:
        assert found == {}  # nothing tells it from a layer that no gradient reaches
        return
    assert found[0].shape == (6,)
    if name not in {"random", "lamp", "reconstruction", "taylor", "fisher"}:
        assert len(found[0].unique()) == 1


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(name: str, bad: float) -> None:
    toy = chain([4, 7, 3])
    toy.tensors["1.weight"][0, 0] = bad
    with pytest.raises(JobFailureError, match=r"1\.weight") as refused:
        scores(toy, name)
    assert refused.value.reason is Reason.MODEL_NOT_FINITE


@EVERY
def test_only_what_is_needed_is_asked_of_the_data(name: str) -> None:
    toy = chain(SIZES)
    evidence = ToyEvidence(toy)
    scores(toy, name, evidence=evidence)
    wanted = {Needs.NONE: [], Needs.GRADIENTS: ["gradients"], Needs.ACTIVATIONS: ["calls"]}
    assert evidence.asked == wanted[criteria.get(name).needs]


@pytest.mark.parametrize("name", ON_DATA)
def test_a_group_that_the_data_says_nothing_of_is_left_out_with_the_reason(name: str) -> None:
    toy = chain(SIZES)
    evidence = ToyEvidence(toy, flat=frozenset({"1.weight"}), unseen=frozenset({"1.weight"}))
    found = scores(toy, name, evidence=evidence)
    assert list(found) == [1]
    (use,) = find_unscored(dict(enumerate(toy.groups)), found, criteria.get(name))
    assert use.layers == ("0.weight", "0.bias", "0.steps", "1.weight")
    assert use.reason == criteria.get(name).unscored
    assert "choose another criterion" in use.reason


@pytest.mark.parametrize("name", ON_DATA)
def test_without_data_it_fails_and_does_not_guess(name: str) -> None:
    toy = chain(SIZES)
    given = toy.input()
    scored = find_scored(dict(enumerate(toy.groups)), given.tensors, given.scored)
    with pytest.raises(JobFailureError) as refused:
        score_channels(scored, given.tensors, criteria.get(name), 0)
    assert refused.value.reason is Reason.INTERNAL


# --- What each means --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "factor"), [("taylor", 1.0), ("fisher", 0.5)])
def test_terms_are_summed_over_what_takes_a_channel_in_and_then_squared(name: str, factor: float) -> None:
    toy = chain([4, 6, 3], width=2)
    kernel = toy.tensors["1.weight"].double()
    batches = [one["1.weight"] for one in ToyEvidence(toy).gradients(["1.weight"], samples=1)]
    terms = [(kernel * one).sum(dim=0).reshape(6, 2).sum(dim=1) for one in batches]
    wanted = factor * sum(term**2 for term in terms) / len(batches)
    assert torch.allclose(scores(toy, name)[0], wanted, rtol=1e-12, atol=0.0)


def test_fpgm_counts_distances_to_all_filters_that_make_channels() -> None:
    toy = chain([4, 6, 3])
    filters = toy.tensors["0.weight"].double()
    distances = torch.stack([(filters - one).norm(dim=1).sum() for one in filters])
    assert torch.allclose(scores(toy, "fpgm")[0], distances / distances.mean(), rtol=1e-9, atol=0.0)


def test_lamp_is_the_l2_score_as_a_share_of_the_larger_ones() -> None:
    toy = chain([4, 6, 3])
    energy = scores(toy, "l2")[0]
    wanted = torch.stack([one / energy[energy >= one].sum() for one in energy])
    assert torch.allclose(scores(toy, "lamp")[0], wanted, rtol=1e-12, atol=0.0)


def test_apoz_and_activation_mean_look_at_what_the_next_layer_takes_in() -> None:
    toy = chain([4, 6, 3])
    seen: list[torch.Tensor] = []
    ToyEvidence(toy).calls(lambda call: seen.append(call.inputs), samples=1, names={"1.weight"})
    values = torch.cat(seen).double()
    assert torch.allclose(scores(toy, "apoz")[0], (values != 0).double().mean(dim=0), rtol=1e-12, atol=0.0)
    means = values.abs().mean(dim=0)
    assert torch.allclose(scores(toy, "activation_mean")[0], means / means.mean(), rtol=1e-6, atol=0.0)


def test_of_twins_reconstruction_gives_up_one_first_and_holds_the_other() -> None:
    toy = chain([4, 6, 3])
    toy.tensors["0.weight"][1] = 2 * toy.tensors["0.weight"][4]
    toy.tensors["1.weight"][:, [1, 4]] *= 10  # neither could go alone
    found = scores(toy, "reconstruction")[0]
    first, second = sorted([found[1].item(), found[4].item()])
    assert first < 1e-3
    assert second > 100 * first


def test_reconstruction_is_the_least_squares_error_of_the_next_layer() -> None:
    toy = chain([4, 6, 3])
    seen: list[torch.Tensor] = []
    ToyEvidence(toy).calls(lambda call: seen.append(call.inputs), samples=1, names={"1.weight"})
    values = torch.cat(seen).double()
    values -= values.mean(dim=0)
    wanted = values @ toy.tensors["1.weight"].double().t()
    errors = []
    for channel in range(6):
        others = values[:, [one for one in range(6) if one != channel]]
        fitted = others @ torch.linalg.lstsq(others, wanted).solution
        errors.append(((wanted - fitted) ** 2).sum() / (wanted**2).sum())
    assert scores(toy, "reconstruction")[0].min().item() == pytest.approx(min(errors).item(), rel=1e-2)
    assert scores(toy, "reconstruction")[0].argmin().item() == int(torch.stack(errors).argmin())
    assert scores(toy, "reconstruction")[0].max().item() == pytest.approx(1.0, abs=1e-2)


# --- Grouped and transposed convolutions ------------------------------------------------------------------------------


def call_of(groups: int, *, transposed: bool = False) -> LinearCall:
    shape = (8, 12 // groups) if transposed else (12, 8 // groups)
    geometry = Geometry((1,), ((0, 0),), (1,), groups, transposed)
    kernel = torch.zeros(*shape, 1)
    axes = (1, 0) if transposed else (0, 1)
    return LinearCall("w", None, "op", torch.zeros(2, 8, 5), torch.zeros(2, 12, 5), kernel, *axes, geometry)


def inputs_of(axis: int, coordinates: tuple[tuple[int, ...], ...], call: LinearCall) -> list[list[int]] | None:
    found = signals.find_inputs(Member("w", (), axis, consumer=True, coordinates=coordinates), call)
    return None if found is None else found.tolist()


def test_inputs_of_plain_and_transposed_convolutions_are_their_coordinates() -> None:
    assert inputs_of(1, ((0, 1), (6, 7)), call_of(1)) == [[0, 1], [6, 7]]
    assert inputs_of(0, ((0,), (6,)), call_of(1, transposed=True)) == [[0], [6]]
    assert inputs_of(0, ((0,), (6,)), call_of(2, transposed=True)) == [[0], [6]]
    assert inputs_of(0, ((0,), (6,)), call_of(1)) is None
    assert inputs_of(1, ((0,), (6,)), call_of(1, transposed=True)) is None


def test_inputs_of_grouped_convolutions_are_those_of_their_parts() -> None:
    # An input that every part has at the same place; then whole parts, by their outputs.
    assert inputs_of(1, ((0,), (1,)), call_of(4)) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert inputs_of(0, ((0, 1, 2), (9, 10, 11)), call_of(4)) == [[0, 1], [6, 7]]
    assert inputs_of(0, ((0, 6), (1, 7)), call_of(2)) == [list(range(8)), list(range(8))]
    assert inputs_of(0, ((0, 6), (1, 2)), call_of(2)) is None


def test_layers_are_joined_through_any_axis_that_they_share() -> None:
    def group(*places: str) -> ChannelGroup:
        return ChannelGroup(1, tuple(Member(place, (), 0, consumer=False, coordinates=((0,),)) for place in places))

    groups = [group("a"), group("b"), group("c", "a"), group("b", "c"), group("d")]
    scored = {number: one.members for number, one in enumerate(groups)}
    values = {number: torch.tensor([number + 1.0], dtype=torch.float64) for number in scored}
    found = by_layer(values, scored, lambda one: one / one.mean())
    assert [one.item() for one in found.values()] == pytest.approx([0.4, 0.8, 1.2, 1.6, 1.0], rel=1e-12)


def test_a_criterion_without_scores_of_channels_is_an_internal_error() -> None:
    toy = chain([3, 4, 2])
    blank = dataclasses.replace(criteria.get("l1"), score=None)
    scored = find_scored(dict(enumerate(toy.groups)), toy.input().tensors, toy.input().scored)
    with pytest.raises(JobFailureError) as refused:
        score_channels(scored, toy.input().tensors, blank, 0)
    assert refused.value.reason is Reason.INTERNAL
    with pytest.raises(JobFailureError):
        assert Basis(toy.input().tensors, 0).data
