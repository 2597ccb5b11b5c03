"""Whole jobs whose condition decides what goes, on the digits and on small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from helpers import zoo
from helpers.models import ConvNet, fitted, image_data
from helpers.runs import Ran, sparsity
from pruning_server.errors import Reason
from pruning_server.spec.request import ConditionalStrategy, FineTune, Granularity, Recovery, StaticStrategy

QUICK = FineTune(epochs=1, learning_rate=1e-3)
CONDITIONS = {
    "abs_weight < 0.5 * layer_std": Granularity.WEIGHT,
    'weight_correlation > 0.95 and kind == "{kind}"': Granularity.CHANNEL,
    "apoz > 0.9": Granularity.CHANNEL,
    "p_harm < 0.05": Granularity.CHANNEL,
    "wald_p > 0.05": Granularity.WEIGHT,
}
KINDS = {"digits": "linear", "images": "conv"}


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple[torch.jit.ScriptModule, dict[str, np.ndarray]]]:
    """Trained nets with two twins and two channels that are never active, and their data."""
    found = {}
    digits = load_digits()
    rows = (digits.images.reshape(-1, 64)[:700] / 16).astype(np.float32)
    labels = digits.target[:700].astype(np.int64)
    torch.manual_seed(0)
    dense = fitted(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), rows, labels, epochs=5)
    images, classes = image_data(500)
    convolutional: Any = fitted(ConvNet(), images, classes, epochs=2)
    for net, first in ((dense, dense[0]), (convolutional, convolutional.conv1)):  # type: ignore[index]
        with torch.no_grad():
            first.weight[3], first.bias[3] = 0.5 * first.weight[5], 0.5 * first.bias[5]
            first.weight[6], first.bias[6] = 0.0, -10.0
        found["digits" if net is dense else "images"] = torch.jit.script(net)
    norm = convolutional.bn1
    with torch.no_grad():
        norm.weight[3], norm.bias[3] = norm.weight[5], norm.bias[5]
        norm.running_mean[3], norm.running_var[3] = 0.5 * norm.running_mean[5], 0.25 * norm.running_var[5]
        norm.running_mean[6] = 0.0
    arrays = {"digits": {"inputs": rows, "targets": labels}, "images": {"inputs": images, "targets": classes}}
    return {name: (module, arrays[name]) for name, module in found.items()}


def run(prune: Callable[..., Ran], cases: Any, name: str, condition: str, **fields: Any) -> Ran:
    model, data = cases[name]
    granularity = CONDITIONS.get(condition, Granularity.CHANNEL)
    text = condition.replace("{kind}", KINDS[name])
    strategy = ConditionalStrategy(condition=text, granularity=granularity, margin=0.08)
    return prune(model, data, strategy=strategy, **({"fine_tune": QUICK} | fields))


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("condition", list(CONDITIONS))
def test_each_condition_decides_and_the_report_says_what(condition: str, name: str, prune: Any, cases: Any) -> None:
    ran = run(prune, cases, name, condition)
    report = ran.report
    strategy, details = report["strategy"], report["strategy"]["details"]
    ran.check()
    assert (strategy["name"], strategy["criterion"], strategy["target"]) == ("conditional", None, {})
    assert details["strategy"] == "conditional"
    assert details["condition"] == condition.replace("{kind}", KINDS[name])
    assert details["qualified"] >= details["removed"] > 0
    assert len(details["comparisons"]) == condition.count("<") + condition.count(">") + condition.count("==")
    for one in details["features"]:
        assert one["texts"] or one["min"] <= one["median"] <= one["max"]
    cost = report["cost"]
    if CONDITIONS[condition] is Granularity.CHANNEL:
        assert strategy["removed_channels"] == details["removed"]
        assert cost["pruned"]["parameters"] < cost["original"]["parameters"]
        assert report["verify"]["max_relative_error"] <= 1e-4
    else:
        assert strategy["pruned_weights"] == details["removed"]
        assert cost["pruned"]["nonzero_parameters"] < cost["original"]["nonzero_parameters"]
    assert (details["harm"] is not None) == ("p_harm" in condition)


@pytest.mark.parametrize("way", [zoo.scripted, zoo.frozen])
def test_a_bias_that_two_layers_add_takes_no_constant_of_a_merged_twin(way: Callable, prune: Any) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
            self.one, self.two = nn.Linear(8, 4), nn.Linear(8, 4)
            self.two.bias = self.one.bias
            with torch.no_grad():
                self.first.weight[4:], self.first.bias[4:] = self.first.weight[:4], self.first.bias[:4]
                self.norm.bias[:4], self.norm.bias[4:] = 3.0, 4.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.norm(self.first(x))
            return torch.cat([self.one(hidden), self.two(-hidden)], 1)

    torch.manual_seed(0)
    net = Shared().eval()
    inputs = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
    ran = prune(
        way(net), {"inputs": inputs}, recovery=Recovery(disabled=True),
        strategy=ConditionalStrategy(condition="activation_correlation > 0.999", granularity=Granularity.CHANNEL),
    )  # fmt: skip
    assert [one["intercept"] for one in ran.report["strategy"]["details"]["merged"]] == [0.0] * 8
    assert "no bias takes constants over" in "\n".join(ran.report["strategy"]["notes"])
    with torch.no_grad():
        wanted, found = net(torch.from_numpy(inputs)), ran.pruned(torch.from_numpy(inputs))
    # With the line's constant in the shared bias, either layer would get the other's on top: an error of 2.
    assert float((found - wanted).abs().max()) < 1.0


@pytest.mark.parametrize("name", list(KINDS))
def test_a_merged_twin_costs_nothing(name: str, prune: Any, cases: Any) -> None:
    ran = run(
        prune, cases, name, "activation_correlation > 0.9999", recovery=Recovery(disabled=True), fine_tune=FineTune()
    )
    report = ran.report
    details = report["strategy"]["details"]
    assert [(one["removed"], one["kept"]) for one in details["merged"]] == [(3, 5)]
    assert details["merged"][0]["correlation"] > 0.9999
    model, data = cases[name]
    inputs = torch.from_numpy(data["inputs"])
    with torch.no_grad():
        wanted, found = model.eval()(inputs), ran.pruned.eval()(inputs)
    scale = float(wanted.abs().max())
    # The border of a padded image sees the twin's constant, which is 0 for exact multiples.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * scale)
    assert report["accuracy"]["delta"] == 0


def test_dead_channels_go_by_their_zeros(prune: Any, cases: Any) -> None:
    ran = run(prune, cases, "digits", "apoz > 0.9999", recovery=Recovery(disabled=True), fine_tune=FineTune())
    layer = next(one for one in ran.report["layers"] if one["name"] == "0.weight")
    assert 6 not in layer["kept"]["0"]
    assert ran.report["accuracy"]["delta"] == 0


def test_nothing_qualifies_and_the_model_stays_as_it_was(prune: Any, cases: Any) -> None:
    ran = run(prune, cases, "digits", "l2 < 0")
    strategy = ran.report["strategy"]
    assert strategy["removed_channels"] == strategy["details"]["removed"] == 0
    assert any(
        note.startswith("no channel meets the condition l2 < 0: nothing was removed; l2 goes from")
        for note in strategy["notes"]
    )
    model, _ = cases["digits"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(ran.pruned.state_dict()[name], tensor, rtol=0, atol=0)
    assert ran.report["accuracy"]["delta"] == 0


def test_a_target_beyond_the_condition_fails_with_the_nearest(prune: Any, cases: Any) -> None:
    failure = run(prune, cases, "digits", "apoz > 0.9999", target=sparsity(0.5)).failure
    assert failure.reason is Reason.TARGET_UNREACHABLE
    assert "ask for at most" in failure.text


def test_the_same_job_twice_decides_the_same(prune: Any, cases: Any) -> None:
    first, second = (run(prune, cases, "digits", "p_harm < 0.05 and activation_mean < 1").report for _ in range(2))
    assert first["strategy"]["details"] == second["strategy"]["details"]
    assert first["model"]["pruned_sha256"] == second["model"]["pruned_sha256"]


def test_static_jobs_have_no_details(prune: Any, cases: Any) -> None:
    model, data = cases["digits"]
    ran = prune(model, data, strategy=StaticStrategy(), target=sparsity(0.3), fine_tune=QUICK)
    assert ran.report["strategy"]["details"] is None
