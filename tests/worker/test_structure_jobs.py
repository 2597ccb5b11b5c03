"""Whole jobs that remove channels and heads, on archives that other people made and on trained nets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import zoo
from helpers.resnet import MEAN, STD, trained_resnet
from helpers.runs import REF, make_spec, make_workspace, run_here
from helpers.shared_data import shared_file
from pruning_server.jobs.events import CountersAdded
from pruning_server.spec.request import (
    FineTune,
    Granularity,
    Layout,
    MethodSamples,
    Preprocessing,
    Recovery,
    ScalarArgument,
    StaticStrategy,
    Target,
    TargetKind,
)

RNG = np.random.default_rng(0)
CHANNELS = StaticStrategy(granularity=Granularity.CHANNEL)
QUICK = FineTune(epochs=1, learning_rate=1e-4)
ARCHIVES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "policy_go2": (RNG.normal(size=(60, 45)), {}),
    "policy_go2_himloco": (RNG.normal(size=(60, 270)), {}),
    "policy_g1_loco_lstm": (RNG.normal(size=(24, 96)), {}),
    "wtw_adaptation": (RNG.normal(size=(60, 2100)), {}),
    "silero_vad": (RNG.normal(size=(24, 512)) * 0.1, {"arguments": (ScalarArgument(position=1, value=16000),)}),
}


def target(kind: TargetKind, value: float) -> Target:
    return Target(kind=kind, value=value)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_loses_channels_and_is_otherwise_the_same(name: str, prune: Callable) -> None:
    inputs, fields = ARCHIVES[name]
    path = shared_file(f"torchscript/{name}.pt")
    ran = prune(
        path, {"inputs": inputs.astype(np.float32)}, strategy=CHANNELS, fine_tune=QUICK,
        target=target(TargetKind.PARAMETER_RATIO, 0.8), **fields,
    )  # fmt: skip
    report = ran.report
    ran.check()
    cost = report["cost"]
    assert cost["pruned"]["parameters"] <= 0.8 * cost["original"]["parameters"]
    assert cost["pruned"]["macs"] < cost["original"]["macs"]
    before, after = torch.jit.load(str(path)), ran.pruned
    assert before.training == after.training
    assert list(before.state_dict()) == list(after.state_dict())
    shapes = {layer["name"]: tuple(layer["shape_after"]) for layer in report["layers"]}
    for key, tensor in after.state_dict().items():
        if key in shapes:
            assert tuple(tensor.shape) == shapes[key]


@pytest.mark.shared_data
@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_resnet_20_loses_half_of_its_macs(way: str, prune: Callable) -> None:
    net = trained_resnet(20)
    model = zoo.traced(net, torch.zeros(2, 3, 32, 32)) if way == "traced" else getattr(zoo, way)(net)
    with np.load(shared_file("cifar10_test.npz")) as data:
        images, labels = data["images"][:400], data["labels"][:400]
    ran = prune(
        model, {"inputs": images, "targets": labels}, strategy=CHANNELS, target=target(TargetKind.MACS_RATIO, 0.5),
        preprocessing=Preprocessing(mean=MEAN, std=STD, layout=Layout.NHWC),
        fine_tune=FineTune(epochs=1, learning_rate=1e-3),
    )  # fmt: skip
    ran.check()
    report = ran.report
    ratio = report["cost"]["pruned"]["macs"] / report["cost"]["original"]["macs"]
    assert 0.4 < ratio <= 0.5
    # The residual stream of the option-A shortcut is pruned too.
    first = report["layers"][0]
    assert first["shape_after"][0] < first["shape_before"][0] == 16
    assert len(first["kept"]["0"]) == first["shape_after"][0]
    rungs = {rung["name"]: rung["metric"] for rung in report["strategy"]["recovery"]["select"]}
    if way != "frozen":  # which has no norms left that could be set to the new statistics
        assert max(rungs.values()) > rungs["nothing"]
        assert report["accuracy"]["pruned"] > 0.3


class Sparse(torch.nn.Module):
    """Every second unit of the hidden layer has tiny weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 16)
        self.second = torch.nn.Linear(16, 3)
        with torch.no_grad():
            self.first.weight[::2] *= 1e-4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.sigmoid(self.first(x)))


@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_channels_without_weights_go_and_leave_their_constants(way: str, prune: Callable) -> None:
    torch.manual_seed(0)
    net = Sparse().eval()
    model = zoo.traced(net, torch.zeros(2, 6)) if way == "traced" else getattr(zoo, way)(net)
    inputs = RNG.normal(size=(200, 6)).astype(np.float32)
    ran = prune(
        model, {"inputs": inputs}, target=target(TargetKind.THRESHOLD, 1e-3), recovery=Recovery(disabled=True)
    )  # fmt: skip
    report = ran.report
    ran.check()
    assert report["strategy"]["removed_channels"] == 8
    assert [layer["kind"] for layer in report["layers"] if layer["kept"]] == ["linear", "linear", "bias"]
    assert report["strategy"]["pruned_weights"] >= 48
    assert report["cost"]["pruned"]["macs"] * 2 == report["cost"]["original"]["macs"]
    assert report["verify"]["max_relative_error"] <= 1e-4
    kernels = [layer for layer in report["layers"] if len(layer["shape_before"]) == 2]
    assert [layer["shape_after"] for layer in kernels] == [[8, 6], [3, 8]]
    with torch.no_grad():
        x = torch.from_numpy(inputs)
        difference = (ran.pruned(x) - net(x)).abs().max()
    # The tiny weights that became 0 moved the sigmoids by at most 1e-3; without the constants it would be 0.5 each.
    assert float(difference) < 1e-2


@pytest.mark.parametrize("way", ["scripted", "frozen"])
def test_the_metrics_count_what_the_report_says(way: str, tmp_path: Path) -> None:
    model = getattr(zoo, way)(Sparse().eval())
    data = {"inputs": RNG.normal(size=(60, 6)).astype(np.float32)}
    spec = make_spec(target(TargetKind.SPARSITY, 0.5), strategy=CHANNELS, recovery=Recovery(disabled=True))
    ran = run_here(make_workspace(tmp_path / "run", model, data, spec))
    counters = [message for message in ran.messages if isinstance(message, CountersAdded)]
    told = ran.report["strategy"]
    assert sum(counter.parameters_processed for counter in counters) == told["prunable_weights"] == 163
    assert sum(counter.parameters_removed for counter in counters) == told["pruned_weights"] == 80


def test_a_job_that_keeps_every_channel_says_nothing_of_zeros(prune: Callable) -> None:
    data = {"inputs": RNG.normal(size=(60, 6)).astype(np.float32)}
    ran = prune(
        zoo.scripted(Sparse().eval()), data, strategy=CHANNELS, target=target(TargetKind.MACS_RATIO, 1.0),
        recovery=Recovery(disabled=True),
    )  # fmt: skip
    assert ran.report["strategy"]["removed_channels"] == 0
    assert not [note for note in ran.report["strategy"]["notes"] if "Zeros" in note]


class TwoWays(torch.nn.Module):
    """A second method that takes other inputs and shares weights with forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 16)
        self.own = torch.nn.Linear(16, 10)
        self.second = torch.nn.Linear(10, 3)
        self.other = torch.nn.Linear(16, 12)
        self.last = torch.nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.own(torch.relu(self.first(x)))))

    @torch.jit.export
    def compare(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = torch.relu(self.first(x)) - torch.relu(self.first(y))
        return self.last(torch.tanh(self.other(z.view(-1, 16))))


@pytest.mark.parametrize("sent", [True, False])
def test_samples_of_another_method_free_what_only_it_uses(sent: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = RNG.normal(size=(120, 6)).astype(np.float32)
    data = {"inputs_0": inputs[:40], "inputs_1": inputs[40:80]}
    methods = {"compare": data} if sent else {}
    spec = make_spec(
        target(TargetKind.SPARSITY, 0.5), strategy=CHANNELS, fine_tune=QUICK,
        method_samples=tuple(MethodSamples(method=name, samples=REF) for name in methods),
    )  # fmt: skip
    root = make_workspace(
        tmp_path / "run", zoo.scripted(TwoWays().eval()), {"inputs": inputs}, spec, methods=methods
    )  # fmt: skip
    ran = run_here(root)
    ran.check()
    shapes = {layer["name"]: layer["shape_after"] for layer in ran.report["layers"]}
    assert (shapes["first.weight"][0] < 16) == sent
    assert (shapes["other.weight"][0] < 12) == sent
    frozen = {use["reason"] for use in ran.report["frozen"]}
    assert any("send samples for it" in reason for reason in frozen) != sent
    assert ("compare" in ran.report["verify"]["methods"]) == sent


class Viewed(torch.nn.Module):
    """A view that only the usual memory layout allows."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 20, 3)
        self.second = torch.nn.Conv2d(20, 4, 3)
        self.flat = flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(torch.relu(self.first(x)))
        return y.view(-1, 4 * 4 * 4) if self.flat else y.mean([2, 3])


@pytest.mark.parametrize("flat", [True, False])
def test_odd_widths_are_stored_channels_last_where_the_code_takes_it(flat: bool, prune: Callable) -> None:
    torch.manual_seed(0)
    inputs = RNG.normal(size=(80, 3, 8, 8)).astype(np.float32)
    ran = prune(
        zoo.scripted(Viewed(flat=flat).eval()), {"inputs": inputs}, strategy=CHANNELS, fine_tune=QUICK,
        target=target(TargetKind.SPARSITY, 0.5),
    )  # fmt: skip
    ran.check()
    kernel = ran.pruned.first.weight
    assert kernel.shape[0] == 10
    assert kernel.is_contiguous() == flat
    assert any("channels last" in note for note in ran.report["strategy"]["notes"]) != flat
