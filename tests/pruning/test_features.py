"""Every feature of the condition language against a direct computation on a small net."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.evidence import planning_of
from helpers.models import ConvNet, fitted, image_data
from pruning_server.pruning.conditions.candidates import find_candidates
from pruning_server.pruning.conditions.tables import GroupTable
from pruning_server.pruning.features import FEATURES
from pruning_server.pruning.features.base import (
    ActivationFeature,
    ActivationRelation,
    Activations,
    CorrectedFeature,
    LayerFeature,
    SliceFeature,
    SliceRelation,
    WeightFeature,
)
from pruning_server.spec.condition import FEATURES as CATALOGUE
from pruning_server.spec.condition import FeatureLevel, Role
from pruning_server.spec.request import ConditionalStrategy, Granularity, MultipleTestingCorrection
from pruning_server.worker.planning.conditional import find_problem
from pruning_server.worker.planning.context import Planning

LEVELS: dict[type, tuple[FeatureLevel, Role]] = {
    WeightFeature: (FeatureLevel.WEIGHT, Role.PLAIN),
    LayerFeature: (FeatureLevel.LAYER, Role.PLAIN),
    SliceFeature: (FeatureLevel.CHANNEL, Role.PLAIN),
    ActivationFeature: (FeatureLevel.CHANNEL, Role.PLAIN),
    SliceRelation: (FeatureLevel.CHANNEL, Role.RELATIVE),
    ActivationRelation: (FeatureLevel.CHANNEL, Role.RELATIVE),
    CorrectedFeature: (FeatureLevel.CHANNEL, Role.TESTED),
}
BY_CHANNEL = " and ".join(
    f"{name} < 1" for name, info in CATALOGUE.items() if info.level is FeatureLevel.CHANNEL and name != "p_harm"
)


def by(condition: str, granularity: Granularity = Granularity.CHANNEL) -> ConditionalStrategy:
    return ConditionalStrategy(condition=condition, granularity=granularity)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    inputs, targets = image_data(200)
    return fitted(ConvNet(), inputs, targets, epochs=1)


@pytest.fixture(scope="module")
def context(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Planning:
    inputs, targets = image_data(200)
    data = {"inputs": inputs, "targets": targets}
    return planning_of(tmp_path_factory.mktemp("job"), torch.jit.script(net), data, strategy=by("l1 < 1"))


@pytest.fixture(scope="module")
def fit(context: Planning) -> tuple[torch.Tensor, torch.Tensor]:
    """The fit samples."""
    inputs, targets = image_data(200)
    rows = context.observed.splits.fit
    return torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows])


@pytest.fixture(scope="module")
def tables(context: Planning) -> list[GroupTable]:
    """Of both groups: the channels of conv1 and those of conv2."""
    problem = find_problem(context, by(BY_CHANNEL))
    assert context.observed.channels is not None
    structure = context.observed.channels.inputs(context.loaded.subject, context.observed.selection.weights)
    found = find_candidates(structure, problem)
    return [GroupTable(members, problem.condition.features) for members in found.groups.values()]


def values(table: GroupTable, name: str) -> torch.Tensor:
    relations = table.relations(torch.ones(table.size, dtype=torch.bool))
    found = table.values(name, {one: relation.values for one, relation in relations.items()})
    assert isinstance(found, torch.Tensor)
    assert found.shape[0] == 1
    return found[0]


def activations(net: Any, inputs: torch.Tensor) -> list[torch.Tensor]:
    """[channels, values] of what conv2 and linear take, float64."""
    with torch.no_grad():
        first = torch.relu(net.bn1(net.conv1(inputs)))
        second = torch.relu(net.bn2(net.conv2(first)))
    return [one.movedim(1, 0).flatten(1).double() for one in (first, second)]


# --- The registry -----------------------------------------------------------------------------------------------------


def test_the_registry_is_the_catalogue() -> None:
    assert list(FEATURES) == list(CATALOGUE)
    for name, feature in FEATURES.items():
        assert (CATALOGUE[name].level, CATALOGUE[name].role) == LEVELS[type(feature)], name


def by_level(level: FeatureLevel) -> list[str]:
    return [name for name, info in CATALOGUE.items() if info.level is level and name != "p_harm"]


@pytest.mark.parametrize("name", by_level(FeatureLevel.CHANNEL))
def test_a_feature_of_channels_has_a_value_for_each(name: str, tables: list[GroupTable]) -> None:
    for table, size in zip(tables, (8, 16), strict=True):
        found = values(table, name)
        assert found.shape == (size,)
        assert found.dtype == torch.float64
        assert torch.isfinite(found).all()
        assert torch.equal(found, values(table, name))


@pytest.mark.parametrize("name", by_level(FeatureLevel.WEIGHT))
def test_a_feature_of_weights_has_a_value_for_each(name: str, context: Planning) -> None:
    problem = find_problem(context, by(f"{name} < 1", Granularity.WEIGHT))
    feature = FEATURES[name]
    assert isinstance(feature, WeightFeature)
    for layer in problem.layers.values():
        found = feature.compute(layer)
        assert found.shape == layer.tensor.shape
        assert found.dtype == torch.float64
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", by_level(FeatureLevel.LAYER))
def test_a_feature_of_layers_has_one_value(name: str, context: Planning) -> None:
    feature, info = FEATURES[name], CATALOGUE[name]
    assert isinstance(feature, LayerFeature)
    problem = find_problem(context, by(f"{name} == 'conv'" if info.is_text else f"{name} < 1", Granularity.WEIGHT))
    for layer in problem.layers.values():
        found = feature.compute(layer)
        assert isinstance(found, str) == info.is_text
        assert not info.choices or found in info.choices
        assert isinstance(found, str) or math.isfinite(found)


# --- Of weights and layers --------------------------------------------------------------------------------------------


def weight_feature(name: str, context: Planning, tensor: str) -> torch.Tensor:
    feature = FEATURES[name]
    assert isinstance(feature, WeightFeature)
    return feature.compute(find_problem(context, by(f"{name} < 1", Granularity.WEIGHT)).layers[tensor])


def layer_feature(name: str, context: Planning, tensor: str, granularity: Granularity = Granularity.WEIGHT) -> Any:
    feature = FEATURES[name]
    assert isinstance(feature, LayerFeature)
    return feature.compute(find_problem(context, by("depth < 1", granularity)).layers[tensor])


def test_weights_and_their_layers(net: Any, context: Planning) -> None:
    weight = net.conv2.weight.detach().double()
    mean, deviation = weight.mean(), ((weight - weight.mean()) ** 2).mean().sqrt()
    name = "conv2.weight"
    torch.testing.assert_close(weight_feature("weight", context, name), weight, rtol=0, atol=0)
    torch.testing.assert_close(weight_feature("abs_weight", context, name), weight.abs(), rtol=0, atol=0)
    torch.testing.assert_close(weight_feature("z_score", context, name), (weight - mean) / deviation, rtol=1e-9, atol=0)
    assert layer_feature("layer_mean", context, name) == pytest.approx(float(mean), rel=1e-9)
    assert layer_feature("layer_std", context, name) == pytest.approx(float(deviation), rel=1e-9)
    assert [layer_feature(one, context, name) for one in ("kind", "name")] == ["conv", "conv2"]
    assert [layer_feature("kind", context, "linear.weight"), layer_feature("sparsity", context, name)] == [
        "linear",
        0.0,
    ]
    assert [layer_feature("index", context, f"{one}.weight") for one in ("conv1", "conv2", "linear")] == [0, 1, 2]
    assert [layer_feature("depth", context, f"{one}.weight") for one in ("conv1", "conv2", "linear")] == [0, 0.5, 1]
    assert layer_feature("macs", context, name) == 16 * 8 * 9 * 4 * 4


def test_gradients_fisher_and_wald(net: Any, context: Planning, fit: tuple[torch.Tensor, torch.Tensor]) -> None:
    gradients = []
    for image, label in zip(*fit, strict=True):
        net.zero_grad()
        nn.functional.cross_entropy(net(image[None]), label[None]).backward()
        gradients.append(net.conv2.weight.grad.double().clone())
    net.zero_grad()
    together = torch.stack(gradients)
    fisher = together.square().mean(dim=0)
    torch.testing.assert_close(
        weight_feature("gradient", context, "conv2.weight"), together.mean(dim=0), rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(weight_feature("fisher", context, "conv2.weight"), fisher, rtol=1e-3, atol=1e-9)
    z = net.conv2.weight.detach().double().abs() * (len(gradients) * fisher).sqrt()
    expected = 2 * (1 - torch.distributions.Normal(0.0, 1.0).cdf(z))
    torch.testing.assert_close(weight_feature("wald_p", context, "conv2.weight"), expected, rtol=1e-3, atol=1e-4)


def accuracy_without(net: nn.Module, tensor: str, zero: torch.Tensor, context: Planning) -> float:
    """Accuracy on select with these weights at 0."""
    inputs, targets = image_data(200)
    rows = context.observed.splits.select
    parameter = net.get_parameter(tensor)
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.masked_fill_(zero, 0.0)
        right = net(torch.from_numpy(inputs[rows])).argmax(dim=1).numpy() == targets[rows]
        parameter.copy_(before)
    return float(np.mean(right))


def test_sensitivity_of_weights_and_of_channels(net: Any, context: Planning) -> None:
    nothing = torch.zeros_like(net.linear.weight, dtype=torch.bool)
    original = accuracy_without(net, "linear.weight", nothing, context)
    flat = net.linear.weight.detach().abs().flatten()
    smaller = torch.zeros(len(flat), dtype=torch.bool)
    smaller[flat.argsort()[: len(flat) // 2]] = True
    fall = original - accuracy_without(net, "linear.weight", smaller.reshape(nothing.shape), context)
    assert layer_feature("sensitivity", context, "linear.weight") == pytest.approx(fall, abs=1e-12)
    # The channels of conv1 are switched off where conv2 takes them.
    order = net.conv1.weight.detach().flatten(1).norm(dim=1).argsort()
    zero = torch.zeros_like(net.conv2.weight, dtype=torch.bool)
    zero[:, order[:4]] = True
    fall = original - accuracy_without(net, "conv2.weight", zero, context)
    found = layer_feature("sensitivity", context, "conv1.weight", Granularity.CHANNEL)
    assert found == pytest.approx(fall, abs=1e-12)
    assert math.isnan(layer_feature("sensitivity", context, "linear.weight", Granularity.CHANNEL))


# --- Of channels ------------------------------------------------------------------------------------------------------


def test_of_weights_that_make_a_channel(net: Any, tables: list[GroupTable]) -> None:
    for table, layer in zip(tables, (net.conv1, net.conv2), strict=True):
        rows = layer.weight.detach().double().flatten(1)
        torch.testing.assert_close(values(table, "l1"), rows.abs().sum(dim=1), rtol=1e-9, atol=0)
        torch.testing.assert_close(values(table, "l2"), rows.norm(dim=1), rtol=1e-9, atol=0)
        distances = torch.stack([(rows - one).norm(dim=1).sum() / (len(rows) - 1) for one in rows])
        torch.testing.assert_close(values(table, "fpgm_distance"), distances, rtol=1e-6, atol=0)
        correlation = torch.corrcoef(rows).abs().fill_diagonal_(-1)
        torch.testing.assert_close(values(table, "weight_correlation"), correlation.amax(dim=1), rtol=1e-6, atol=0)


def test_of_activations(net: Any, tables: list[GroupTable], fit: tuple[torch.Tensor, torch.Tensor]) -> None:
    for table, taken in zip(tables, activations(net, fit[0]), strict=True):
        torch.testing.assert_close(values(table, "apoz"), (taken == 0).double().mean(dim=1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values(table, "activation_mean"), taken.mean(dim=1), rtol=1e-4, atol=1e-6)
        variances = taken.var(dim=1, correction=0)
        torch.testing.assert_close(values(table, "activation_variance"), variances, rtol=1e-4, atol=1e-6)
        correlation = torch.corrcoef(taken).abs().fill_diagonal_(-1)
        torch.testing.assert_close(
            values(table, "activation_correlation"), correlation.amax(dim=1), rtol=1e-4, atol=1e-5
        )
        explained = torch.stack([share_explained(taken, channel) for channel in range(len(taken))])
        torch.testing.assert_close(values(table, "redundancy"), explained, rtol=1e-3, atol=1e-4)


def share_explained(taken: torch.Tensor, channel: int) -> torch.Tensor:
    """R^2 of least squares on the others, with a constant."""
    others = [one for one in range(len(taken)) if one != channel]
    design = torch.cat([taken[others].T, torch.ones(taken.shape[1], 1, dtype=torch.float64)], dim=1)
    target = taken[channel]
    solution = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution
    residual = (target - (design @ solution)[:, 0]).square().sum()
    return 1 - residual / (target - target.mean()).square().sum()


def observed(rows: torch.Tensor) -> Activations:
    return Activations(rows.shape[1], (rows == 0).sum(dim=1).double(), rows.sum(dim=1), rows @ rows.T)


def test_relations_are_with_kept_channels_only() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(5, 400, generator=generator, dtype=torch.float64)
    rows[4] = rows[0] + 0.1 * rows[4]
    rows[3] = 2.0
    everything, without = torch.ones(5, dtype=torch.bool), torch.tensor([False, True, True, True, True])
    for name in ("activation_correlation", "redundancy"):
        feature = FEATURES[name]
        assert isinstance(feature, ActivationRelation)
        relate = feature.prepare([observed(rows)])
        assert relate(everything).values[4] > 0.95
        assert relate(without).values[4] < 0.3
        # A channel that does not vary is like no other.
        assert torch.isnan(relate(everything).values[3])
    partners = FEATURES["activation_correlation"].prepare([observed(rows)])(everything).partners  # type: ignore[union-attr]
    assert partners is not None
    assert int(partners[4]) == 0


def test_redundancy_in_steps_is_redundancy_from_the_start() -> None:
    rows = torch.randn(12, 500, generator=torch.Generator().manual_seed(4), dtype=torch.float64).cumsum(dim=0)
    feature = FEATURES["redundancy"]
    assert isinstance(feature, ActivationRelation)
    stepwise, kept = feature.prepare([observed(rows)]), torch.ones(12, dtype=torch.bool)
    for channel in (3, 7, 0, 11, 5):
        kept[channel] = False
        fresh = feature.prepare([observed(rows)])(kept).values
        torch.testing.assert_close(stepwise(kept).values, fresh, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_a_pair_is_as_alike_as_its_least_alike_member() -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (torch.randn(3, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    first[1] = 2 * first[0]
    feature = FEATURES["weight_correlation"]
    assert isinstance(feature, SliceRelation)
    kept = torch.ones(3, dtype=torch.bool)
    alone = feature.prepare([first])(kept).values
    both = feature.prepare([first, second])(kept).values
    assert float(alone[0]) == pytest.approx(1.0, abs=1e-12)
    least = torch.minimum(torch.corrcoef(first).abs(), torch.corrcoef(second).abs()).fill_diagonal_(-1)
    torch.testing.assert_close(both, least.amax(dim=1), rtol=1e-9, atol=0)


# --- p_harm -----------------------------------------------------------------------------------------------------------


def test_corrections_are_those_of_the_books() -> None:
    statsmodels = pytest.importorskip("statsmodels.stats.multitest")
    raw = np.random.default_rng(0).random(40) ** 3
    feature = FEATURES["p_harm"]
    assert isinstance(feature, CorrectedFeature)
    for correction, method in (
        (MultipleTestingCorrection.HOLM, "holm"),
        (MultipleTestingCorrection.BENJAMINI_HOCHBERG, "fdr_bh"),
    ):
        expected = statsmodels.multipletests(raw, method=method)[1]
        np.testing.assert_allclose(feature.correct(list(raw), correction), expected, rtol=1e-12)
    assert feature.correct([float("nan"), 0.001], MultipleTestingCorrection.HOLM) == [1.0, 0.002]
    assert feature.correct([], MultipleTestingCorrection.HOLM) == []


def test_data_is_only_asked_for_by_features_that_need_it(tmp_path: Path, net: nn.Module) -> None:
    inputs, targets = image_data(60)
    context = planning_of(
        tmp_path, torch.jit.script(net), {"inputs": inputs, "targets": targets}, strategy=by("l1 < 1")
    )
    asked: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(context.evidence, name)

    assert context.observed.channels is not None
    structure = context.observed.channels.inputs(context.loaded.subject, context.observed.selection.weights)
    for condition, expected in (
        ("l1 < 1 and l2 < 1 and fpgm_distance < 1 and macs > 0 and layer_std > 0", set()),
        ("apoz < 1", {"calls", "samples"}),
    ):
        asked.clear()
        problem = find_problem(Planning(**{**vars(context), "evidence": Counting()}), by(condition))
        for members in find_candidates(structure, problem).groups.values():
            GroupTable(members, problem.condition.features)
        assert set(asked) == expected
