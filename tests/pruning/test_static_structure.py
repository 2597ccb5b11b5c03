"""Static pruning of channels and heads: targets are met by the smallest removal, or refused with the nearest."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.structures import Cost, Toy, chain, each, scaled, shuffled
from pruning_server.errors import InvalidRequestError, JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.graph.modules import find_weights, get_tensor
from pruning_server.graph.structure import Structure, analyse
from pruning_server.graph.values import KERNEL_KINDS, FrozenUse
from pruning_server.pruning.strategies import plan_structure
from pruning_server.pruning.values import StructuralInput, StructuralPlan
from pruning_server.spec.request import ChannelConstraints, Granularity, Scope, StaticStrategy, Target, TargetKind

# Those that need nothing but the kernels; all of them are in `criteria/`.
EVERY = pytest.mark.parametrize("name", ["l1", "l2", "lamp", "fpgm", "random"])
BY_SCORE = [Scope.GLOBAL, Scope.LAYER]
SCOPES = pytest.mark.parametrize("scope", BY_SCORE)
RATIOS = [TargetKind.PARAMETER_RATIO, TargetKind.MACS_RATIO]
SIZES = [6, 20, 9, 33, 4]


def config(name: str = "l1", scope: Scope = Scope.GLOBAL, *, heads: bool = False, **channels: int) -> StaticStrategy:
    return StaticStrategy(
        granularity=Granularity.HEAD if heads else Granularity.CHANNEL,
        criterion=name,
        scope=scope,
        channels=ChannelConstraints(**channels),
    )


def plan(
    toy: Toy | StructuralInput,
    kind: TargetKind,
    value: float,
    rules: StaticStrategy | None = None,
    *,
    seed: int = 3,
    exclude: tuple[str, ...] = (),
) -> StructuralPlan:
    structure = toy.input() if isinstance(toy, Toy) else toy
    target = Target(kind=kind, value=value)
    return plan_structure(structure, rules or config(), target, seed, exclude_layers=exclude)


def sparse(toy: Toy, value: float, rules: StaticStrategy | None = None, **kinds: object) -> StructuralPlan:
    return plan(toy, TargetKind.SPARSITY, value, rules, **kinds)


def refusal(
    toy: Toy | StructuralInput, kind: TargetKind, value: float, *given: object, **kinds: object
) -> JobFailureError:
    with pytest.raises(JobFailureError) as refused:
        plan(toy, kind, value, *given, **kinds)
    return refused.value


# --- What every criterion holds ---------------------------------------------------------------------------------------


@EVERY
@SCOPES
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8])
def test_the_count_is_exact(name: str, scope: Scope, sparsity: float) -> None:
    made = sparse(chain([3, *SIZES, 2]), sparsity, config(name, scope))
    assert made.removable_channels == sum(SIZES)
    assert made.removed_channels == round(sparsity * sum(SIZES))
    assert made.achieved == made.sparsity == pytest.approx(sparsity, abs=0.5 / sum(SIZES))
    assert all(made.kept_counts[number] + made.removed_counts[number] == size for number, size in enumerate(SIZES))
    assert made.notes == ()


@EVERY
@SCOPES
def test_the_same_seed_gives_the_same_plan(name: str, scope: Scope) -> None:
    rules = config(name, scope)
    assert sparse(chain([3, *SIZES, 2]), 0.4, rules) == sparse(chain([3, *SIZES, 2]), 0.4, rules)


@EVERY
@SCOPES
@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e6])
def test_scaling_all_weights_changes_nothing(name: str, scope: Scope, factor: float) -> None:
    rules, toy = config(name, scope), chain([3, *SIZES, 2])
    assert sparse(toy, 0.4, rules).removal == sparse(scaled(toy, factor), 0.4, rules).removal


@EVERY
@SCOPES
def test_a_higher_sparsity_removes_more_of_the_same(name: str, scope: Scope) -> None:
    toy = chain([3, *SIZES, 2])
    low, high = (sparse(toy, value, config(name, scope)).removal for value in (0.3, 0.6))
    assert all(set(channels) <= set(high[number]) for number, channels in low.items())


@EVERY
@SCOPES
@pytest.mark.parametrize("kind", RATIOS)
def test_a_ratio_is_met_and_one_channel_less_would_miss_it(name: str, scope: Scope, kind: TargetKind) -> None:
    toy = chain([3, *SIZES, 2])
    made = plan(toy, kind, 0.6, config(name, scope))
    whole = toy.cost({}).parameters
    assert made.achieved == toy.cost(made.removal).parameters / whole <= 0.6
    fewer = sparse(toy, (made.removed_channels - 1) / sum(SIZES), config(name, scope))
    assert fewer.removed_channels == made.removed_channels - 1
    assert toy.cost(fewer.removal).parameters / whole > 0.6


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 90), min_size=1, max_size=3),
    ratio=st.floats(0.3, 1.0),
    kind=st.sampled_from(RATIOS),
    scope=st.sampled_from(BY_SCORE),
    least=st.integers(1, 3),
    multiple=st.none() | st.integers(1, 9),
)
def test_whatever_the_rules_a_ratio_is_met_or_the_nearest_one_is_named(
    sizes: list[int], ratio: float, kind: TargetKind, scope: Scope, least: int, multiple: int | None
) -> None:
    toy = chain([3, *sizes, 2])
    rules = config("l1", scope, min_channels=least, multiple=multiple)
    try:
        made = plan(toy, kind, ratio, rules)
    except JobFailureError:
        refused = refusal(toy, kind, ratio, rules)
        assert refused.reason is Reason.TARGET_UNREACHABLE
        nearest = float(refused.metadata["nearest"])
        assert nearest > ratio
        made, ratio = plan(toy, kind, nearest, rules), nearest
        assert made.achieved == pytest.approx(nearest, rel=1e-3)
    assert toy.cost(made.removal).parameters <= ratio * toy.cost({}).parameters
    for number, kept in made.kept_counts.items():
        step = multiple or (8 if sizes[number] >= 64 else 1)
        assert kept >= min(least, sizes[number])
        assert kept == sizes[number] or kept % step == 0


# --- Targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "value"), [(TargetKind.SPARSITY, 0.0), *((kind, 1.0) for kind in RATIOS)])
def test_nothing_asked_nothing_removed(kind: TargetKind, value: float) -> None:
    toy = chain([3, *SIZES, 2])
    made = plan(toy, kind, value)
    assert made.removal == {}
    assert made.achieved == value
    assert made.notes == ()


def test_the_least_important_channels_go() -> None:
    toy = chain([3, 5, 2])
    for number, size in enumerate([4.0, 1.0, 5.0, 2.0, 3.0]):
        toy.tensors["0.weight"][number] = size
        toy.tensors["1.weight"][:, number] = size
    assert sparse(toy, 0.4).removal == {0: (1, 3)}


def test_large_weights_do_not_spare_a_layer() -> None:
    """`chain` makes each layer ten times as large as the one before."""
    made = sparse(chain([16, 40, 40, 16]), 0.5)
    assert all(10 <= count <= 30 for count in made.removed_counts.values())


def test_with_multiples_at_least_the_sparsity_is_removed_and_the_plan_says_so() -> None:
    toy = chain([3, 64, 64, 2])
    made = sparse(toy, 0.3)
    assert all(kept % 8 == 0 for kept in made.kept_counts.values())
    assert 0.3 <= made.sparsity < 0.3 + 8 / 128
    assert re.search(r"multiple of 8; sparsity is 0\.3", made.notes[0])
    assert sparse(toy, 0.3, config(multiple=1)).removed_channels == round(0.3 * 128)


@SCOPES
def test_a_sparsity_beyond_the_floors_is_refused_with_one_that_works(scope: Scope) -> None:
    toy, rules = chain([3, 4, 10, 2]), config("l1", scope, min_channels=2)
    refused = refusal(toy, TargetKind.SPARSITY, 0.9, rules)
    assert refused.reason is Reason.TARGET_UNREACHABLE
    assert "every layer keeps 2 channels" in refused.message
    assert float(refused.metadata["nearest"]) == pytest.approx(10 / 14, rel=1e-3)
    assert sparse(toy, float(refused.metadata["nearest"]), rules).kept_counts == {0: 2, 1: 2}


@pytest.mark.parametrize("kind", RATIOS)
def test_a_ratio_out_of_reach_names_the_nearest_and_what_stays(kind: TargetKind) -> None:
    toy = chain([3, 64, 9, 2])
    reasons = (FrozenUse("aten::sort", "model.py:3", "the order of channels matters", ("a.weight",)),)
    structure = dataclasses.replace(toy.input(), frozen=reasons)
    refused = refusal(structure, kind, 0.01, exclude=("1.bias",))
    assert refused.reason is Reason.TARGET_UNREACHABLE
    for words in (f"{kind.value} 0.01", "every layer keeps 1 channel;", "multiple 1", "keeps 1 groups", "aten::sort"):
        assert words in refused.message
    made = plan(structure, kind, float(refused.metadata["nearest"]), exclude=("1.bias",))
    assert made.kept_counts == {0: 8}


def test_unknown_macs_are_no_target_and_parameters_still_are() -> None:
    toy = chain([3, 9, 2], macs_per_element=None)
    refused = refusal(toy, TargetKind.MACS_RATIO, 0.5)
    assert refused.reason is Reason.TARGET_UNREACHABLE
    assert "parameter_ratio" in refused.message
    assert plan(toy, TargetKind.PARAMETER_RATIO, 0.5).removal


def test_emptying_a_layer_is_noted() -> None:
    toy = chain([3, 40, 40, 2])
    assert sparse(toy, 0.9).notes == ()
    assert "fewer than 10%" in sparse(toy, 0.95).notes[0]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((TargetKind.SPARSITY, value) for value in (-0.1, 1.0, float("nan"))),
        *((kind, value) for kind in RATIOS for value in (0.0, 1.1, float("nan"))),
    ],
)
def test_a_target_out_of_range_is_an_invalid_request(kind: TargetKind, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=rf"spec\.{kind.value}"):
        plan(chain([3, 4, 2]), kind, value)


def test_other_targets_granularities_and_criteria_are_refused() -> None:
    for kind in (TargetKind.THRESHOLD, TargetKind.MAX_ACCURACY_DROP):
        with pytest.raises(NotImplementedFeatureError, match=kind.value):
            plan(chain([3, 4, 2]), kind, 0.5)
    for granularity in (Granularity.WEIGHT, Granularity.NM):
        with pytest.raises(NotImplementedFeatureError, match=granularity.value):
            sparse(chain([3, 4, 2]), 0.5, StaticStrategy(granularity=granularity))
    with pytest.raises(InvalidRequestError, match="l1, l2, lamp"):
        sparse(chain([3, 4, 2]), 0.5, config("astrology"))


# --- What may go ------------------------------------------------------------------------------------------------------


def mixed() -> Toy:
    """Two groups, of which the second is heads."""
    toy = chain([3, 6, 8, 2])
    return Toy(toy.tensors, (toy.groups[0], dataclasses.replace(toy.groups[1], kind="head")))


def test_with_heads_only_heads_go_and_with_channels_everything() -> None:
    assert sparse(mixed(), 0.5, config(heads=True)).removed_counts == {1: 4}
    assert sparse(mixed(), 0.5).removed_channels == 7
    assert sparse(mixed(), 0.5).removable == {0: 6, 1: 8}


@pytest.mark.parametrize(
    ("pattern", "removable", "layers"),
    [
        ("1.bias", {0: 6}, ("1.bias",)),
        ("nick", {0: 6}, ("2.weight",)),
        ("0", {1: 8}, ("0.weight", "0.bias", "0.steps")),
        ("2", {0: 6}, ("2.weight",)),  # a layer that is left alone keeps its inputs as well
    ],
)
def test_a_group_with_an_excluded_member_stays_whole_and_is_reported(
    pattern: str, removable: dict[int, int], layers: tuple[str, ...]
) -> None:
    toy = mixed()
    *rest, last = toy.groups[1].members
    named = ChannelGroup(8, (*rest, dataclasses.replace(last, aliases=("nick.name",))))
    made = sparse(Toy(toy.tensors, (toy.groups[0], named)), 0.5, exclude=(pattern,))
    assert made.removable == removable
    assert [(use.reason, use.layers) for use in made.frozen] == [(f"excluded by the request: {pattern}", layers)]
    assert made.notes == ()


def test_patterns_that_match_nothing_are_noted_and_those_of_frozen_layers_are_not() -> None:
    structure = dataclasses.replace(mixed().input(), frozen=(FrozenUse("", "", "why", ("encoder.weight",)),))
    made = plan(structure, TargetKind.SPARSITY, 0.5, exclude=("encoder", "decoder.*", "2.bias"))
    assert [note.split("'")[1] for note in made.notes] == ["decoder.*", "2.bias"]


def test_channels_without_a_weight_stay_and_are_reported() -> None:
    toy = mixed()
    structure = dataclasses.replace(toy.input(), scored=frozenset({"0.weight"}))
    made = plan(structure, TargetKind.SPARSITY, 0.5)
    assert made.removable == {0: 6}
    assert made.frozen[0].layers == ("1.weight", "1.bias", "1.steps", "2.weight")


@pytest.mark.parametrize(
    ("toy", "rules", "exclude", "words"),
    [
        (Toy({}, ()), config(), (), "no channels that can be removed"),
        (chain([3, 4, 2]), config(heads=True), (), "no attention heads"),
        (chain([3, 4, 2]), config(), ("0.*",), "exclude_layers excludes all 1"),
        (chain([3, 4, 6, 2]), config(), ("1",), "exclude_layers excludes all 2"),
    ],
)
def test_nothing_prunable_says_why(toy: Toy, rules: StaticStrategy, exclude: tuple[str, ...], words: str) -> None:
    refused = refusal(toy, TargetKind.SPARSITY, 0.5, rules, exclude=exclude)
    assert refused.reason is Reason.NOTHING_PRUNABLE
    assert words in refused.message


@SCOPES
def test_channels_that_are_groups_of_their_own_compete(scope: Scope) -> None:
    made = sparse(shuffled(40), 0.5, config("l1", scope))
    whole = sparse(chain([3, 40, 2]), 0.5, config("l1", scope))
    assert tuple(made.removal) == whole.removal[0]


# --- A real model -----------------------------------------------------------------------------------------------------


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 12, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(12)
        self.inner = torch.nn.Conv2d(12, 20, 3, padding=1)
        self.back = torch.nn.Conv2d(20, 12, 1)
        self.head = torch.nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.inner(x)))
        return self.head(x.mean([2, 3]))


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(6, 24)
        self.qkv = torch.nn.Linear(24, 3 * 6 * 4)
        self.out = torch.nn.Linear(24, 24)
        self.head = torch.nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).view(x.size(0), x.size(1), 3, 6, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


def real(net: torch.nn.Module, inputs: torch.Tensor) -> tuple[StructuralInput, Structure]:
    """A module's own groups and costs, with its kernels as what is scored."""
    module = torch.jit.script(net.eval())
    structure = analyse(module, {"forward": [(inputs,)]}, batch_size=len(inputs))
    scored = frozenset(weight.name for weight in find_weights(module).weights if weight.kind in KERNEL_KINDS)
    tensors = partial(get_tensor, module)
    return StructuralInput(structure.groups, tensors, scored, structure.cost, structure.frozen), structure


def shapes(structure: Structure, made: StructuralPlan) -> dict[tuple[str, int], int]:
    return {(cut.tensor, cut.axis): len(cut.kept) for cut in structure.cut(made.removal)}


@EVERY
@pytest.mark.parametrize("kind", RATIOS)
def test_groups_of_a_real_model(name: str, kind: TargetKind) -> None:
    torch.manual_seed(4)
    given, structure = real(Residual(), torch.randn(2, 3, 8, 8))
    made = plan(given, kind, 0.5, config(name))
    assert sorted(made.removable.values()) == [12, 20]
    assert made.frozen == ()
    assert 0.4 < made.achieved <= 0.5
    found = shapes(structure, made)
    assert (
        len({found[place] for place in (("stem.weight", 0), ("back.weight", 0), ("head.weight", 1), ("norm.bias", 0))})
        == 1
    )
    assert found["inner.weight", 0] == found["back.weight", 1]


@EVERY
def test_heads_of_a_real_model(name: str) -> None:
    torch.manual_seed(4)
    given, structure = real(Attention(), torch.randn(2, 7, 6))
    made = plan(given, TargetKind.SPARSITY, 0.5, config(name, heads=True))
    assert made.removable_channels == 6
    assert made.removed_channels == 3
    assert shapes(structure, made) == {("qkv.weight", 0): 36, ("qkv.bias", 0): 36, ("out.weight", 1): 12}


def test_a_tensor_that_stands_in_the_code_keeps_a_channel() -> None:
    """Its axis has no channel but those of one group, and the weights of that group have others."""
    toy = chain([3, 8, 2])
    first = toy.groups[0].members
    table = Member("constant 0", (), 1, consumer=False, coordinates=each(4))
    halves = tuple(
        ChannelGroup(
            4, (*(dataclasses.replace(one, coordinates=one.coordinates[start : start + 4]) for one in first), *extra)
        )
        for start, extra in ((0, (table,)), (4, ()))
    )
    made = sparse(StructuralInput(halves, toy.tensors.__getitem__, frozenset({"0.weight"}), toy.cost), 0.85)
    assert made.kept_counts == {0: 1, 1: 0}


def test_the_cost_is_asked_for_rarely() -> None:
    toy = chain([3, 2000, 3000, 2000, 2])
    plan(toy, TargetKind.MACS_RATIO, 0.5)
    assert len(toy.asked) <= 15


def test_a_cost_that_is_counted_by_someone_else_is_taken_as_it_is() -> None:
    toy = chain([3, 10, 2])
    structure = dataclasses.replace(
        toy.input(), cost=lambda removal: Cost(100, 1000 - 100 * sum(len(one) for one in removal.values()))
    )
    assert plan(structure, TargetKind.MACS_RATIO, 0.55).removed_channels == 5
    assert refusal(structure, TargetKind.PARAMETER_RATIO, 0.5).metadata["nearest"] == "1.0"
