"""Whole jobs on attention, torch's own and written out: dimensions inside heads go for channels, whole heads for heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers import zoo
from helpers.models import fitted
from helpers.runs import Ran, make_spec
from pruning_server.spec.request import (
    ChannelConstraints,
    ConditionalStrategy,
    DynamicStrategy,
    Evaluation,
    FineTune,
    Granularity,
    StaticStrategy,
    Target,
    TargetKind,
)

HALF = Target(kind=TargetKind.MACS_RATIO, value=0.5)
ONE = ChannelConstraints(multiple=1)
LESSON = {"fine_tune": FineTune(epochs=2, learning_rate=1e-3), "evaluation": Evaluation(margin=0.5)}


class Attending(nn.Module):
    """Torch's attention, then two heads of eight dimensions: [N, 6, 8] in, [N, 3] logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.query, self.key, self.value = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16)
        self.out = nn.Linear(16, 8)
        self.last = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x, x, x)[0]
        q = self.query(x).view(-1, 6, 2, 8).transpose(1, 2)
        k = self.key(x).view(-1, 6, 2, 8).transpose(1, 2)
        v = self.value(x).view(-1, 6, 2, 8).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.last(torch.relu(x + self.out(mixed.transpose(1, 2).reshape(-1, 6, 16))).flatten(1))


@pytest.fixture(scope="module")
def attending() -> tuple[nn.Module, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(120, 6, 8)).astype(np.float32)
    targets = inputs[..., :6].reshape(120, -1, 3).mean(axis=1).argmax(axis=1).astype(np.int64)
    torch.manual_seed(0)
    return fitted(Attending(), inputs, targets, epochs=4), {"inputs": inputs, "targets": targets}


STRATEGIES = {
    "static": StaticStrategy(granularity=Granularity.CHANNEL, channels=ONE),
    "taylor": StaticStrategy(granularity=Granularity.CHANNEL, channels=ONE, criterion="taylor"),
    "dynamic": DynamicStrategy(schedule="cubic", granularity=Granularity.CHANNEL, channels=ONE),
    "soft": DynamicStrategy(schedule="soft", granularity=Granularity.CHANNEL, channels=ONE),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_dimensions_inside_heads_go_and_it_is_proven(name: str, attending: Any, prune: Callable[..., Ran]) -> None:
    net, data = attending
    ran = prune(zoo.scripted(net), data, make_spec(strategy=STRATEGIES[name], target=HALF, **LESSON))
    report = ran.report
    ran.check()
    assert report["cost"]["pruned"]["macs"] <= 0.5 * report["cost"]["original"]["macs"]
    assert report["verify"]["max_relative_error"] <= 1e-4
    assert report["verify"]["max_relative_error_randomized"] <= 1e-9
    assert ran.pruned.query.weight.shape[0] == ran.pruned.key.weight.shape[0] < 16
    assert any("dimensions inside heads" in note for note in report["strategy"]["notes"])


def test_whole_heads_go_on_demand(attending: Any, prune: Callable[..., Ran]) -> None:
    net, data = attending
    strategy = StaticStrategy(granularity=Granularity.HEAD)
    target = Target(kind=TargetKind.SPARSITY, value=0.5)
    ran = prune(zoo.scripted(net), data, make_spec(strategy=strategy, target=target, **LESSON))
    ran.check()
    assert ran.pruned.query.weight.shape == (8, 8)
    assert ran.pruned.attention.in_proj_weight.shape == (12, 8)
    assert not any("dimensions inside heads" in note for note in ran.report["strategy"]["notes"])


def test_a_condition_decides_on_dimensions(attending: Any, prune: Callable[..., Ran]) -> None:
    net, data = attending
    strategy = ConditionalStrategy(condition="l2 < 1.5", granularity=Granularity.CHANNEL)
    target = Target(kind=TargetKind.SPARSITY, value=0.3)
    ran = prune(zoo.scripted(net), data, make_spec(strategy=strategy, target=target, **LESSON))
    ran.check()
    assert ran.report["verify"]["max_relative_error_randomized"] <= 1e-9
