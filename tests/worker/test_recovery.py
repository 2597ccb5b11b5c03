"""Whole jobs that recover: closed forms without a gradient step, with and without labels, whatever the archive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from pruning_server.spec.request import FineTune, Granularity, Recovery, StaticStrategy, Target, TargetKind

CHANNELS = StaticStrategy(granularity=Granularity.CHANNEL)
CLOSED_FORM = FineTune(epochs=0)


class Twins(nn.Module):
    """Every hidden channel has a twin with smaller weights, so that half of them can go without a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.second, self.last = nn.Conv2d(32, 8, 3, padding=1), nn.Linear(8, 5)
        with torch.no_grad():
            self.first.weight[16:] = self.first.weight[:16] * 0.9
            self.norm.running_mean.normal_(std=0.1)
            self.norm.running_mean[16:] = self.norm.running_mean[:16] * 0.9
            self.norm.running_var.fill_(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 5] logits."""
        hidden = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(hidden)).mean(dim=[2, 3]))


def archive(way: str) -> torch.jit.ScriptModule:
    net = Twins().eval()
    return zoo.traced(net, torch.zeros(2, 3, 8, 8)) if way == "traced" else getattr(zoo, way)(net)


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 8, 8)).astype(np.float32) * 2


@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
def test_closed_forms_bring_a_pruned_net_back_without_labels(way: str, prune: Callable) -> None:
    ran = prune(
        archive(way), {"inputs": samples(300)}, strategy=CHANNELS, fine_tune=CLOSED_FORM,
        target=Target(kind=TargetKind.MACS_RATIO, value=0.6),
    )  # fmt: skip
    ran.check()
    recovery = ran.report["strategy"]["recovery"]
    assert recovery["kept"] == "reconstruction"
    rungs = {rung["name"]: rung for rung in recovery["rungs"]}
    assert rungs["reconstruction"]["loss"] < 0.05 * rungs["nothing"]["loss"]
    assert rungs["reconstruction"]["gradient_steps"] == 0
    assert rungs["reconstruction"]["seconds"] > 0
    assert rungs["reconstruction"]["gain"] == pytest.approx(
        rungs["reconstruction"]["metric"] - rungs["reconstruction"]["metric_before"]
    )
    assert ran.report["accuracy"]["pruned"] >= ran.report["accuracy"]["original"] - 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pruned_weights_stay_zero_in_every_precision(dtype: torch.dtype, prune: Callable) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4)).to(dtype).eval()
    inputs = np.random.default_rng(0).normal(size=(200, 12)).astype(np.float32)
    ran = prune(
        torch.jit.script(net),
        {"inputs": inputs},
        fine_tune=CLOSED_FORM,
        target=Target(kind=TargetKind.SPARSITY, value=0.7),
    )
    report = ran.report
    rungs = {rung["name"]: rung for rung in report["strategy"]["recovery"]["rungs"]}
    assert rungs["reconstruction"]["loss"] < 0.95 * rungs["nothing"]["loss"]
    weights = [tensor for name, tensor in ran.pruned.state_dict().items() if name.endswith("weight")]
    zeros = sum(int((tensor == 0).sum()) for tensor in weights)
    assert zeros >= round(0.7 * sum(tensor.numel() for tensor in weights))
    assert {tensor.dtype for tensor in weights} == {dtype}


def test_no_recovery_leaves_every_weight_that_stays(prune: Callable) -> None:
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    ran = prune(
        torch.jit.script(net), {"inputs": np.zeros((60, 12), np.float32)}, fine_tune=FineTune(),
        target=Target(kind=TargetKind.SPARSITY, value=0.5), recovery=Recovery(disabled=True),
    )  # fmt: skip
    for name, tensor in ran.pruned.state_dict().items():
        kept = tensor != 0
        assert torch.equal(tensor[kept], net.state_dict()[name][kept])


def test_the_same_seed_gives_the_same_bytes(prune: Callable) -> None:
    states = []
    for _ in range(2):
        ran = prune(
            archive("scripted"), {"inputs": samples(80)}, strategy=CHANNELS, fine_tune=FineTune(epochs=2),
            target=Target(kind=TargetKind.MACS_RATIO, value=0.7),
        )  # fmt: skip
        states.append(ran.pruned.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
