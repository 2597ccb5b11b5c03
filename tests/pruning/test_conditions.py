"""Deciding by a condition: Python's meaning, the order in which channels go, merging, floors, targets and tests of harm."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.evidence import planning_of
from helpers.models import fitted, mlp, table_data
from pruning_server.errors import JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.evaluation.harm import harm_p_value
from pruning_server.graph.capture import LinearCall, capture
from pruning_server.graph.modules import find_weights, get_tensor
from pruning_server.graph.structure import analyse
from pruning_server.pruning.conditions.channels import plan_channels
from pruning_server.pruning.conditions.evaluate import evaluate
from pruning_server.pruning.conditions.problem import HarmTest, Problem
from pruning_server.pruning.conditions.weights import plan_weights
from pruning_server.pruning.evidence import SampleScores
from pruning_server.pruning.features.base import GradientMoments, Layer
from pruning_server.pruning.features.relations import correlations
from pruning_server.pruning.values import PruningPlan, ScoredInput, StructuralInput, StructuralPlan
from pruning_server.spec.condition import parse_condition
from pruning_server.spec.report_strategy import ConditionalDetails
from pruning_server.spec.request import (
    ChannelConstraints,
    ConditionalStrategy,
    Granularity,
    MultipleTestingCorrection,
    Target,
    TargetKind,
)

ONE_BY_ONE = ChannelConstraints(multiple=1)

# --- Evaluation -------------------------------------------------------------------------------------------------------

NAMES = ("l1", "l2", "macs")
VALUES = [-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0]
leaves = st.sampled_from(NAMES) | st.sampled_from(["0.0", "0.5", "1.0", "3.0"])
numbers = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
        inner.map(lambda p: f"(-{p})"),
        st.tuples(st.sampled_from(["abs", "sqrt"]), inner).map(lambda p: f"{p[0]}({p[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda p: f"{p[0]}({p[1]}, {p[2]})"),
    ),
    max_leaves=5,
)
operators = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
links = st.tuples(st.sampled_from(NAMES), operators, numbers, operators, st.sampled_from(NAMES)).map(" ".join)
texts = st.sampled_from(["kind == 'conv'", "kind != 'linear'", "kind in ['conv']", "kind not in ['conv', 'linear']"])
conditions = st.recursive(
    links | texts,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(" and ".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda p: " or ".join(f"({one})" for one in p)),
        inner.map(lambda p: f"not ({p})"),
    ),
    max_leaves=4,
)
rows = st.lists(st.tuples(*[st.sampled_from(VALUES)] * len(NAMES)), min_size=1, max_size=4)


def in_python(text: str, row: Sequence[float], kind: str) -> bool | None:
    """What Python says of one row; None where it raises."""
    try:
        known = {"abs": abs, "min": min, "max": max, "sqrt": math.sqrt, "kind": kind}
        return bool(eval(text, {"__builtins__": {}}, known | dict(zip(NAMES, row, strict=True))))
    except (ZeroDivisionError, ValueError):
        return None


@settings(max_examples=300, deadline=None)
@given(conditions, rows, st.sampled_from(["conv", "linear"]))
def test_means_what_python_means(text: str, values: list[tuple[float, ...]], kind: str) -> None:
    columns = torch.tensor(values, dtype=torch.float64).T
    truth = evaluate(parse_condition(text).tree, {"kind": kind, **dict(zip(NAMES, columns, strict=True))})
    true, false = (one.expand(len(values)).tolist() for one in (truth.true, truth.false))
    for row, is_true, is_false in zip(values, true, false, strict=True):
        expected = in_python(text, row, kind)
        assert not (is_true and is_false)
        if expected is not None:
            assert (is_true, is_false) == (expected, not expected), row


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("l1 < 1", None),
        ("not (l1 < 1)", None),
        ("l1 != l1", None),
        ("l1 < 1 and l2 > 5", False),
        ("l1 < 1 or l2 < 5", True),
        ("l1 < 1 and l2 < 5", None),
        ("1 / macs > 0", None),
        ("log(macs) < 0", None),
        ("sqrt(-l2) < 1", None),
        ("(-l2) ** 0.5 < 1", None),
        ("max(l1, l2) > 0", None),
    ],
)
def test_what_is_not_known_is_neither_true_nor_false(text: str, outcome: bool | None) -> None:
    table = {"l1": torch.tensor(math.nan), "l2": torch.tensor(1.0), "macs": torch.tensor(0.0)}
    truth = evaluate(parse_condition(text).tree, {name: value.double() for name, value in table.items()})
    assert (bool(truth.true), bool(truth.false)) == (outcome is True, outcome is False)


# --- A world without a worker -----------------------------------------------------------------------------------------

Scores = Callable[[Mapping[int, Sequence[int]]], np.ndarray]


@dataclass
class Seen:
    """Evidence from samples and a rule: `harmed` says which samples a removal gets wrong."""

    module: torch.jit.ScriptModule
    inputs: torch.Tensor
    harmed: Scores | None = None
    trials: list[dict[int, tuple[int, ...]]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return len(self.inputs)

    def gradients(self, names: Any, **_: Any) -> Any:
        raise AssertionError(names)

    def calls(self, visit: Callable[[LinearCall], None], *, samples: int, names: Any = None) -> None:
        capture(self.module, (self.inputs[:samples],), visit, names)

    def original(self, part: str) -> SampleScores:
        return self.trial({}, part=part)

    def trial(self, removed: Any, *, part: str = "select", renormalize: bool = False) -> SampleScores:
        assert (part, renormalize) == ("select", False)
        assert self.harmed is not None
        self.trials.append({number: tuple(channels) for number, channels in removed.items()})
        wrong = self.harmed(removed)
        return SampleScores(1.0 - wrong, wrong.copy(), np.arange(len(wrong)))

    def latency_ratio(self, _: Any) -> float:
        raise AssertionError


@dataclass
class World:
    """A net, what can be removed of it, and plans by conditions."""

    module: torch.jit.ScriptModule
    inputs: torch.Tensor
    harmed: Scores | None = None
    margin: float = 0.1

    def __post_init__(self) -> None:
        sizes = [(self.inputs[:2],), (self.inputs[:3],)]
        self.structure = analyse(self.module, {"forward": sizes}, batch_size=2)
        self.evidence = Seen(self.module, self.inputs, self.harmed)
        self.weights = [one for one in find_weights(self.module).weights if one.kind.value in {"conv", "linear"}]

    def problem(self, text: str, target: Target | None = None, **strategy: Any) -> Problem:
        fields = {"granularity": Granularity.CHANNEL, "channels": ONE_BY_ONE} | strategy
        return Problem(
            condition=parse_condition(text),
            strategy=ConditionalStrategy(condition=text, **fields),
            target=target,
            layers={
                one.name: Layer(
                    tensor=get_tensor(self.module, one.name),
                    path=one.layer,
                    kind=one.kind.value,
                    index=index,
                    count=len(self.weights),
                    macs=None,
                    gradients=lambda: GradientMoments(torch.zeros(1), torch.zeros(1), 1),
                    sensitivity=lambda: math.nan,
                )
                for index, one in enumerate(self.weights)
            },
            evidence=self.evidence,
            harm=HarmTest(self.p_value, self.margin),
        )

    def p_value(self, original: SampleScores, changed: SampleScores) -> float:
        return harm_p_value(original.metric, changed.metric, original.units, self.margin, is_binary=True)

    def plan(
        self, text: str, target: Target | None = None, *, exclude: tuple[str, ...] = (), **strategy: Any
    ) -> StructuralPlan:
        structure = StructuralInput(
            groups=self.structure.groups,
            tensors=lambda name: get_tensor(self.module, name),
            scored=frozenset(one.name for one in self.weights),
            cost=self.structure.cost,
        )
        return plan_channels(structure, replace(self.problem(text, target, **strategy), exclude_layers=exclude))

    def plan_weights(self, text: str, target: Target | None = None) -> PruningPlan:
        inputs = [ScoredInput(one.name, one.layer, one.kind, get_tensor(self.module, one.name)) for one in self.weights]
        return plan_weights(inputs, self.problem(text, target, granularity=Granularity.WEIGHT))

    def error_after(self, plan: StructuralPlan, *, merged: bool = True) -> float:
        """Largest error of the outputs when the plan is carried out, relative to their largest value."""
        changed = torch.jit.load(io.BytesIO(self.module.save_to_buffer()))
        with torch.no_grad():
            wanted = self.module(self.inputs)
            for name, value in plan.updates.items() if merged else ():
                get_tensor(changed, name).copy_(value)
            found = masked_output(changed, self.structure.cut(plan.removal), self.inputs)
        return float((found - wanted).abs().max() / wanted.abs().max())


def masked_output(module: torch.jit.ScriptModule, cut: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Of the model with consumers' slices at zero."""
    for one in cut:
        if one.zeroed:
            get_tensor(module, one.tensor).index_fill_(one.axis, torch.tensor(one.zeroed), 0.0)
    return module(inputs)


def details(plan: StructuralPlan | PruningPlan) -> ConditionalDetails:
    assert isinstance(plan.details, ConditionalDetails)
    return plan.details


def dense(hidden: int = 12, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 3, bias=bias)).eval()


def world_of(net: nn.Module, **fields: Any) -> World:
    inputs = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    return World(torch.jit.script(net), inputs, **fields)


def sparsity(value: float) -> Target:
    return Target(kind=TargetKind.SPARSITY, value=value)


# --- Which channels ---------------------------------------------------------------------------------------------------


def test_what_qualifies_goes_and_nothing_else() -> None:
    net = dense()
    norms = net[0].weight.detach().double().norm(dim=1)
    limit = float(norms.sort().values[4:6].mean())
    plan = world_of(net).plan(f"l2 < {limit!r}")
    assert plan.removal == {0: tuple(sorted(norms.argsort()[:5].tolist()))}
    assert (details(plan).qualified, details(plan).removed, details(plan).candidates) == (5, 5, 12)
    assert details(plan).comparisons[0].holds == 5
    assert details(plan).comparisons[0].fails == 7
    assert plan.achieved == pytest.approx(5 / 12)
    assert plan.updates == {}


def test_nothing_qualifies_and_the_ranges_say_why() -> None:
    plan = world_of(dense()).plan("l2 < 0 and kind == 'linear'")
    norms = dense()[0].weight.detach().norm(dim=1)
    assert plan.removal == {}
    assert "no channel meets the condition l2 < 0 and kind == 'linear'" in plan.notes[0]
    assert f"from {norms.min():.4g} to {norms.max():.4g}" in plan.notes[0]
    assert "kind is one of linear" in plan.notes[0]


@pytest.mark.parametrize("floor", [1, 5])
def test_a_layer_is_never_emptied_and_keeps_its_best(floor: int) -> None:
    plan = world_of(dense()).plan("l2 > 0", channels=ChannelConstraints(min_channels=floor, multiple=1))
    norms = dense()[0].weight.detach().norm(dim=1)
    assert set(range(12)) - set(plan.removal[0]) == set(norms.argsort()[12 - floor :].tolist())
    assert details(plan).kept_by_floors == floor
    assert any("too small" in note for note in plan.notes)


def test_what_stays_is_rounded_up_to_the_multiple() -> None:
    plan = world_of(dense()).plan("l2 > 0", channels=ChannelConstraints(min_channels=3, multiple=4))
    assert len(plan.removal[0]) == 8
    assert details(plan).kept_by_floors == 4


def test_excluded_layers_stay() -> None:
    with pytest.raises(JobFailureError) as caught:
        world_of(dense()).plan("l2 > 0", exclude=("0.*",))
    assert caught.value.reason is Reason.NOTHING_PRUNABLE


class Residual(nn.Module):
    """Two layers that make the same channels, and a third that takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(torch.relu(x + self.second(torch.relu(x))))


def test_a_coupled_channel_qualifies_only_if_all_its_members_do() -> None:
    torch.manual_seed(2)
    net = Residual().eval()
    with torch.no_grad():
        for layer, small in ((net.first, [0, 1, 2]), (net.second, [1, 2, 4])):
            layer.weight[small] *= 1e-3
    world = world_of(net)
    assert world.plan("l2 < 0.1").removal == {0: (1, 2)}
    # What is not known of one member is not known of the channel.
    assert world.plan("l2 < 0.1 or name == 'first'").removal == {0: (1, 2, 4)}
    assert world.plan("not (l2 < 0.1)").removal == {0: (3, 5)}


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5])
def test_a_target_takes_the_first_in_order(value: float) -> None:
    plan = world_of(dense()).plan("l2 > 0", sparsity(value))
    norms = dense()[0].weight.detach().norm(dim=1)
    count = round(value * 12)
    assert plan.removal.get(0, ()) == tuple(sorted(norms.argsort()[:count].tolist()))
    assert plan.achieved == pytest.approx(count / 12)


@pytest.mark.parametrize("kind", [TargetKind.MACS_RATIO, TargetKind.PARAMETER_RATIO])
def test_a_ratio_is_met_with_as_few_as_possible(kind: TargetKind) -> None:
    world = world_of(dense())
    plan = world.plan("l2 > 0", Target(kind=kind, value=0.5))
    pick = (lambda cost: cost.macs) if kind is TargetKind.MACS_RATIO else (lambda cost: cost.parameters)
    before = pick(world.structure.cost({}))
    assert plan.achieved == pytest.approx(pick(world.structure.cost(plan.removal)) / before)
    assert plan.achieved <= 0.5
    one_less = {0: plan.removal[0][1:]}
    assert pick(world.structure.cost(one_less)) / before > 0.5


@pytest.mark.parametrize("target", [sparsity(0.5), Target(kind=TargetKind.MACS_RATIO, value=0.5)])
def test_a_target_beyond_the_condition_names_the_nearest(target: Target) -> None:
    norms = dense()[0].weight.detach().double().norm(dim=1).sort().values
    world = world_of(dense())
    condition = f"l2 < {float(norms[2:4].mean())!r}"
    with pytest.raises(JobFailureError) as caught:
        world.plan(condition, target)
    assert caught.value.reason is Reason.TARGET_UNREACHABLE
    nearest = replace_value(target, float(caught.value.metadata["nearest"]))
    assert len(world.plan(condition, nearest).removal[0]) == 3


def replace_value(target: Target, value: float) -> Target:
    return Target(kind=target.kind, value=value)


def test_other_targets_are_named() -> None:
    with pytest.raises(NotImplementedFeatureError, match="latency_ratio"):
        world_of(dense()).plan("l2 > 0", Target(kind=TargetKind.LATENCY_RATIO, value=0.5))


# --- Twins ------------------------------------------------------------------------------------------------------------


def with_twins(net: nn.Sequential, scale: float = -2.0) -> nn.Sequential:
    """Channels 1 and 7 become 3 and 0 times a number; ReLU lets only positive multiples through alike."""
    with torch.no_grad():
        for twin, of, factor in ((1, 3, 0.5), (7, 0, abs(scale))):
            net[0].weight[twin] = factor * net[0].weight[of]
            net[0].bias[twin] = factor * net[0].bias[of]
    return net


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("feature", ["weight_correlation", "activation_correlation"])
def test_a_twin_is_merged_exactly(feature: str, *, bias: bool) -> None:
    world = world_of(with_twins(dense(bias=bias)))
    plan = world.plan(f"{feature} > 0.9999")
    # Of two twins the smaller goes.
    assert plan.removal == {0: (0, 1)}
    assert world.error_after(plan) < 1e-5
    assert world.error_after(plan, merged=False) > 1e-2
    pairs = {(one.removed, one.kept): one for one in details(plan).merged}
    assert set(pairs) == {(1, 3), (0, 7)}
    assert pairs[1, 3].slope == pytest.approx(0.5, rel=1e-5)
    assert pairs[0, 7].slope == pytest.approx(0.5, rel=1e-5)
    assert pairs[1, 3].intercept == pytest.approx(0.0, abs=1e-5)
    assert pairs[1, 3].correlation == pytest.approx(1.0, abs=1e-9)
    assert pairs[1, 3].layer == "2.weight"
    assert details(plan).merged_channels == 2


def test_the_intercept_goes_into_the_bias() -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.Identity(), nn.Linear(6, 3)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        net[0].weight[4] = -3 * net[0].weight[2]
        net[0].bias[4] = 5.0
    world = world_of(net)
    plan = world.plan("activation_correlation > 0.9999")
    (pair,) = details(plan).merged
    # Of two twins the smaller goes, and minus a third of the larger stands for it.
    assert (pair.removed, pair.kept) == (2, 4)
    assert pair.slope == pytest.approx(-1 / 3, rel=1e-4)
    assert abs(pair.intercept) > 1
    assert set(plan.updates) == {"2.weight", "2.bias"}
    assert world.error_after(plan) < 1e-5


class ReadsTwice(nn.Module):
    """Another op reads the bias that would take a twin's constant over."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.first.weight[4] = -3 * self.first.weight[2]
            self.first.bias[4] = 5.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x)) + torch.tanh(self.last.bias)


def test_a_bias_that_other_ops_read_takes_no_constants_over() -> None:
    plan = world_of(ReadsTwice().eval()).plan("activation_correlation > 0.9999")
    assert details(plan).merged
    assert set(plan.updates) == {"last.weight"}
    assert any("no bias takes constants over in last.weight" in note for note in plan.notes)


def test_of_two_twins_each_is_as_like_the_other() -> None:
    covariance = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = covariance @ covariance.T
    # As another processor's product would be.
    rounded = covariance * (1 + 1e-15 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double())
    found = correlations(rounded).nan_to_num()
    assert torch.equal(found, found.T)


class Images(nn.Module):
    """Convolutions with normalization between, without padding, of which two channels are alike."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 3, groups=groups)
        self.last = nn.Linear(4 * 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.relu(self.norm(self.first(x))))
        return self.last(torch.relu(x).flatten(1))


def image_world(groups: int = 1) -> World:
    torch.manual_seed(4)
    net = Images(groups)
    with torch.no_grad():
        # In a grouped convolution channels go in pairs, one of each group.
        for twin, of in ((5, 2), *(((1, 6),) if groups == 2 else ())):
            net.first.weight[twin], net.first.bias[twin] = net.first.weight[of], net.first.bias[of]
        if groups == 2:
            net.first.weight[5], net.first.bias[5] = net.first.weight[6], net.first.bias[6]
            net.first.weight[1], net.first.bias[1] = net.first.weight[2], net.first.bias[2]
    net.train()(torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(5)))
    inputs = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(6))
    return World(torch.jit.script(net.eval()), inputs)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_twin_behind_a_normalization_is_merged_exactly(groups: int) -> None:
    world = image_world(groups)
    plan = world.plan("weight_correlation > 0.9999 and name == 'first'")
    assert sum(len(channels) for channels in plan.removal.values()) == 1
    assert world.error_after(plan) < 1e-5
    assert world.error_after(plan, merged=False) > 1e-3


def test_a_twin_before_a_flattening_is_merged_at_every_place() -> None:
    torch.manual_seed(8)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)).eval()
    with torch.no_grad():
        net[0].weight[4], net[0].bias[4] = 2 * net[0].weight[1], 2 * net[0].bias[1]
    world = World(torch.jit.script(net), torch.randn(50, 1, 6, 6, generator=torch.Generator().manual_seed(9)))
    plan = world.plan("activation_correlation > 0.9999")
    assert plan.removal == {0: (1,)}
    assert world.error_after(plan) < 1e-5


def test_what_cannot_be_merged_is_said() -> None:
    with_bias, without = (
        world_of(with_twins(dense(bias=bias))).plan("weight_correlation > 0.9999") for bias in (True, False)
    )
    assert not any("through the origin" in note for note in with_bias.notes)
    assert any("in 2.weight: there the line goes through the origin" in note for note in without.notes)


def test_merging_is_never_worse_than_leaving_out_in_the_mean_square() -> None:
    """At the consumer, over the samples that the line was fitted on."""
    torch.manual_seed(7)
    net = dense(16)
    world = world_of(net)
    plan = world.plan("activation_correlation > 0.2")
    assert plan.removal
    hidden = net[1](net[0](world.inputs)).detach().double()
    wanted = hidden @ net[2].weight.detach().double().T + net[2].bias.detach()
    removed = list(plan.removal[0])
    errors = []
    for kernel, bias in (
        (net[2].weight.detach(), net[2].bias.detach()),
        (plan.updates["2.weight"], plan.updates["2.bias"]),
    ):
        cut = kernel.double().clone()
        cut[:, removed] = 0
        errors.append(float((hidden @ cut.T + bias - wanted).square().mean()))
    assert errors[1] < errors[0]


def test_of_a_ring_of_twins_one_stays_and_no_partner_goes() -> None:
    net = dense()
    with torch.no_grad():
        for channel in range(1, 6):
            net[0].weight[channel] = (1 + 0.1 * channel) * net[0].weight[0]
            net[0].bias[channel] = (1 + 0.1 * channel) * net[0].bias[0]
    world = world_of(net)
    plan = world.plan("weight_correlation > 0.9999")
    assert len(plan.removal[0]) == 5
    assert not set(plan.removal[0]) & {one.kept for one in details(plan).merged}
    assert world.error_after(plan) < 1e-5


def test_redundant_channels_go_until_the_others_no_longer_explain_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 10), nn.Identity(), nn.Linear(10, 3)).eval()
    plan = world_of(net).plan("redundancy > 0.999")
    # Ten channels of eight inputs: two are sums of the others, whichever go first.
    assert len(plan.removal[0]) == 2
    assert details(plan).comparisons[0].holds == 10


LIMITS = {
    "l1": (0.0, 4.0), "l2": (0.0, 2.0), "fpgm_distance": (0.0, 2.0), "weight_correlation": (0.0, 1.0),
    "activation_correlation": (0.0, 1.0), "redundancy": (0.0, 1.0), "apoz": (0.0, 1.0), "activation_mean": (0.0, 1.0),
    "activation_variance": (0.0, 1.0), "layer_std": (0.0, 0.5), "index": (0.0, 1.0), "depth": (0.0, 1.0),
}  # fmt: skip
limited = st.sampled_from(sorted(LIMITS)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(["<", ">"]), st.floats(*LIMITS[name]).map(repr)).map(" ".join)
)
combined = st.lists(limited, min_size=1, max_size=3).flatmap(
    lambda parts: st.sampled_from([" and ", " or ", " and not "]).map(
        lambda word: word.join(f"({one})" for one in parts)
    )
)
TWINS = world_of(with_twins(dense()))


@settings(max_examples=40, deadline=None)
@given(combined, st.integers(1, 4), st.integers(1, 3))
def test_whatever_the_condition(text: str, floor: int, multiple: int) -> None:
    """A plan comes out, twice the same; floors and multiples hold; partners stay; merged kernels are finite."""
    constraints = ChannelConstraints(min_channels=floor, multiple=multiple)
    plan, again = (TWINS.plan(text, channels=constraints) for _ in range(2))
    assert plan.removal == again.removal
    assert plan.details == again.details
    removed = plan.removal.get(0, ())
    kept = 12 - len(removed)
    assert kept >= floor
    assert not removed or kept % multiple == 0
    found = details(plan)
    assert found.candidates >= found.qualified >= found.removed == len(removed)
    assert not set(removed) & {one.kept for one in found.merged}
    assert {one.removed for one in found.merged} <= set(removed)
    assert all(bool(torch.isfinite(one).all()) for one in plan.updates.values())


# --- Harm -------------------------------------------------------------------------------------------------------------

SELECT = 400


def harmless(costs: Mapping[int, float], together: float = 1.0) -> Scores:
    """Each channel of group 0 gets a share of the samples wrong, its own ones; together they may cost more."""

    def wrong(removed: Mapping[int, Sequence[int]]) -> np.ndarray:
        channels = removed.get(0, ())
        share = sum(costs[channel] for channel in channels) * (together if len(channels) > 1 else 1.0)
        return (np.arange(SELECT) < round(share * SELECT)).astype(float)

    return wrong


def test_only_channels_whose_harm_is_rejected_go() -> None:
    costs = {channel: 0.0 if channel in {2, 5, 9} else 0.3 for channel in range(12)}
    world = world_of(dense(), harmed=harmless(costs))
    plan = world.plan("p_harm < 0.05")
    assert plan.removal == {0: (2, 5, 9)}
    section = details(plan).harm
    assert section is not None
    assert (section.tests, section.samples, section.margin) == (12, SELECT, 0.1)
    assert section.smallest_p == pytest.approx(12 * 0.9**SELECT, rel=1e-6)
    assert [one.channels for one in section.joint] == [1, 2, 3]
    assert {channel for _, channel, _ in section.p_values} == {2, 5, 9}


def test_channels_that_only_harm_together_are_held_back() -> None:
    costs = dict.fromkeys(range(12), 0.02)
    world = world_of(dense(), harmed=harmless(costs))
    plan = world.plan("p_harm < 0.05")
    removed = len(plan.removal[0])
    section = details(plan).harm
    assert section is not None
    assert 1 < removed < 5
    assert section.joint[-1].p_value >= 0.05
    assert all(one.p_value < 0.05 for one in section.joint[:-1])
    assert [one.channels for one in section.joint][-2] == removed
    assert any("tested together" in note for note in plan.notes)


def test_what_the_rest_of_the_condition_decides_is_not_tested() -> None:
    norms = dense()[0].weight.detach().double().norm(dim=1).sort().values
    world = world_of(dense(), harmed=harmless(dict.fromkeys(range(12), 0.0)))
    plan = world.plan(f"p_harm < 0.05 and l2 < {float(norms[2:4].mean())!r}")
    section = details(plan).harm
    assert section is not None
    assert section.tests == 3
    assert len(plan.removal[0]) == 3


@pytest.mark.parametrize("correction", list(MultipleTestingCorrection))
def test_less_data_never_prunes_more(correction: MultipleTestingCorrection) -> None:
    """The same shares of harmed samples among fewer and fewer samples."""
    costs = {channel: 0.008 * channel for channel in range(12)}
    removed = []
    for samples in (50, 100, 200, 400, 800, 1600):

        def wrong(taken: Mapping[int, Sequence[int]], samples: int = samples) -> np.ndarray:
            share = sum(costs[channel] for channel in taken.get(0, ()))
            return (np.arange(samples) < math.ceil(share * samples)).astype(float)

        plan = world_of(dense(), harmed=wrong).plan("p_harm < 0.05", correction=correction)
        removed.append(len(plan.removal.get(0, ())))
    assert removed == sorted(removed)
    assert removed[0] < removed[-1]


def test_too_few_samples_prune_nothing_and_say_so() -> None:
    def wrong(_: Mapping[int, Sequence[int]]) -> np.ndarray:
        return np.zeros(10)

    world = world_of(dense(), harmed=wrong)
    plan = world.plan("p_harm < 0.05")
    assert plan.removal == {}
    assert any(note.startswith("p_harm was not tested: with 10 select samples and 12 tests") for note in plan.notes)
    # Nothing but the original was run.
    assert set(map(str, world.evidence.trials)) == {"{}"}
    section = details(plan).harm
    assert section is not None
    assert section.needed_samples is not None
    # (1 - 0.1) ** n * 12 < 0.05 from 53 samples on.
    assert 53 <= section.needed_samples <= 55


def test_a_condition_that_wants_large_p_values_is_tested_whatever_the_samples() -> None:
    world = world_of(dense(), harmed=lambda _: np.zeros(3))
    assert len(world.plan("p_harm > 0.5").removal[0]) == 11


def test_what_the_test_cannot_decide_is_not_tested() -> None:
    world = world_of(dense(), harmed=harmless(dict.fromkeys(range(12), 0.0)))
    # Of dense layers nobody counted the products.
    plan = world.plan("p_harm < 0.05 and macs > 1")
    section = details(plan).harm
    assert section is not None
    assert (section.tests, plan.removal) == (0, {})


# --- Weights ----------------------------------------------------------------------------------------------------------


def test_weights_that_meet_the_condition_become_zero() -> None:
    net = dense()
    plan = world_of(net).plan_weights("abs_weight < 0.5 * layer_std")
    for name, mask in plan.masks.items():
        weight = net.get_parameter(name).detach().double()
        assert torch.equal(mask.removed, weight.abs() < 0.5 * weight.std(correction=0))
    found = details(plan)
    assert found.qualified == found.removed == plan.removed_weights > 0
    assert found.candidates == sum(mask.numel for mask in plan.masks.values())


def test_features_of_layers_choose_layers() -> None:
    plan = world_of(dense()).plan_weights("index == 1 and z_score < 0")
    assert plan.masks["0.weight"].removed_count == 0
    weight = dense()[2].weight.detach()
    assert torch.equal(plan.masks["2.weight"].removed, weight < weight.mean())


def test_no_layer_loses_all_its_weights() -> None:
    plan = world_of(dense()).plan_weights("abs_weight >= 0")
    for name, mask in plan.masks.items():
        weight = dense().get_parameter(name).detach().abs()
        assert mask.removed_count == mask.numel - 1
        assert int((~mask.removed).flatten().nonzero()[0, 0]) == int(weight.argmax())
    assert details(plan).kept_by_floors == 2


@pytest.mark.parametrize("value", [0.0, 0.2, 0.4])
def test_a_sparsity_within_the_condition_is_exact_and_takes_the_smallest(value: float) -> None:
    net = dense()
    plan = world_of(net).plan_weights("weight > 0", sparsity(value))
    total = sum(mask.numel for mask in plan.masks.values())
    assert plan.removed_weights == round(value * total)
    weights = torch.cat([net.get_parameter(name).detach().flatten() for name in plan.masks])
    removed = torch.cat([mask.removed.flatten() for mask in plan.masks.values()])
    assert (weights[removed] > 0).all()
    if value:
        assert weights[removed].max() <= weights[~removed & (weights > 0)].min()


def test_a_sparsity_beyond_the_condition_names_the_nearest() -> None:
    world = world_of(dense())
    with pytest.raises(JobFailureError) as caught:
        world.plan_weights("abs_weight < 0.01", sparsity(0.9))
    assert caught.value.reason is Reason.TARGET_UNREACHABLE
    nearest = float(caught.value.metadata["nearest"])
    assert world.plan_weights("abs_weight < 0.01", sparsity(nearest)).removed_weights > 0


def test_nothing_qualifies_among_weights() -> None:
    plan = world_of(dense()).plan_weights("abs_weight < 0")
    assert plan.removed_weights == 0
    assert "no weight meets the condition" in plan.notes[0]
    assert "median" in plan.notes[0]


# --- With the worker's evidence ---------------------------------------------------------------------------------------


def test_features_of_channels_broadcast_to_the_weights_that_make_them(tmp_path: Path) -> None:
    from pruning_server.worker.planning.conditional import plan

    inputs, targets = table_data(120)
    net = fitted(mlp(16), inputs, targets, epochs=1)
    condition = "apoz > 0.5 and l1 > 0 and abs_weight < 1"
    strategy = ConditionalStrategy(condition=condition, granularity=Granularity.WEIGHT)
    context = planning_of(tmp_path, torch.jit.script(net), {"inputs": inputs, "targets": targets}, strategy=strategy)
    found = plan(context, strategy)
    assert isinstance(found, PruningPlan)
    taken = torch.relu(net[0](torch.from_numpy(inputs[context.observed.splits.fit])))  # type: ignore[index]
    dead = (taken == 0).double().mean(dim=0) > 0.5
    assert dead.any()
    expected = dead[:, None] & (net[0].weight.detach().abs() < 1)  # type: ignore[index]
    assert torch.equal(found.masks["0.weight"].removed, expected)
    # Nobody takes what the last layer makes.
    assert found.masks["3.weight"].removed_count == 0
