"""Channels that weight pruning left empty go, and their constants move into the next bias."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from helpers import cutting, shrinking, zoo
from pruning_server.graph.dead_channels import find_dead_channels, remove_dead_channels


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.3


class Convolved(nn.Module):
    """Convolution, norm and activation, then a second convolution with or without padding."""

    def __init__(self, act: nn.Module, *, padding: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.act = act
        self.second = nn.Conv2d(6, 5, 3, padding=padding, bias=bias)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.act(self.norm(self.first(x))))
        return self.last(torch.relu(x).mean([2, 3]))


def emptied(net: nn.Module, weight: str, rows: Sequence[int]) -> nn.Module:
    with torch.no_grad():
        net.get_parameter(weight)[list(rows)] = 0.0
    return net


def archived(net: nn.Module, form: str, x: Tensor) -> torch.jit.ScriptModule:
    return zoo.traced(net, x) if form == "traced" else getattr(zoo, form)(net.eval())


@pytest.mark.parametrize("form", ["scripted", "traced", "frozen"])
def test_constants_move_into_the_bias(form: str) -> None:
    net = Convolved(nn.Sigmoid())
    cutting.randomize(net, 1)
    emptied(net, "first.weight", [1, 4])
    x = sample(2, 3, 8, 8)
    archive = archived(net, form, x)
    dead = find_dead_channels(zoo.reload(archive), {"forward": [(x,), (sample(3, 3, 8, 8),)]})
    assert sum(len(gone) for gone in dead.removal.values()) == 2
    assert dead.folds
    smaller = zoo.reload(archive)
    remove_dead_channels(smaller, dead)
    shrinking.assert_same(zoo.reload(smaller), archive, "forward", (sample(4, 3, 9, 9),))


def test_a_constant_is_not_folded_across_padded_zeros() -> None:
    x = sample(2, 3, 8, 8)
    found = {}
    for name, act in {"sigmoid": nn.Sigmoid(), "relu": nn.ReLU()}.items():
        net = Convolved(act, padding=1)
        cutting.randomize(net, 2)
        emptied(net, "first.weight", [1, 4])
        with torch.no_grad():
            net.norm.bias[[1, 4]] = -5.0  # below zero behind the norm, so that relu gives 0
            net.norm.running_mean[[1, 4]] = 0.0
            net.first.bias[[1, 4]] = 0.0
        archive = zoo.scripted(net.eval())
        dead = find_dead_channels(zoo.reload(archive), {"forward": [(x,)]})
        found[name] = sum(len(gone) for gone in dead.removal.values())
        smaller = zoo.reload(archive)
        remove_dead_channels(smaller, dead)
        shrinking.assert_same(zoo.reload(smaller), archive, "forward", (sample(4, 3, 9, 9),))
    assert found == {"sigmoid": 0, "relu": 2}


def test_without_a_bias_only_zeros_go() -> None:
    net = Convolved(nn.Sigmoid(), bias=False)
    cutting.randomize(net, 3)
    archive = zoo.scripted(emptied(net, "first.weight", [0]).eval())
    assert not find_dead_channels(archive, {"forward": [(sample(2, 3, 8, 8),)]}).removal


class Gated(nn.Module):
    """A value of the input, the same for all channels, is multiplied in: the channels are no constants."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.gate = nn.Linear(4, 1)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.first(x)) * torch.relu(self.gate(x)))


def test_what_is_constant_only_for_the_samples_stays() -> None:
    net = Gated()
    cutting.randomize(net, 4)
    emptied(net, "first.weight", [2])
    with torch.no_grad():
        net.gate.bias.fill_(-1e3)  # the samples never open it
    archive = zoo.scripted(net.eval())
    assert not find_dead_channels(archive, {"forward": [(sample(5, 4),)]}).removal


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return self.last(y + self.down(torch.tanh(self.up(y))))


def test_all_that_makes_a_channel_must_be_zero() -> None:
    net = Residual()
    cutting.randomize(net, 5)
    emptied(emptied(net, "stem.weight", [0, 3]), "down.weight", [3])
    x = sample(5, 4)
    archive = zoo.scripted(net.eval())
    dead = find_dead_channels(zoo.reload(archive), {"forward": [(x,), (x[:2],)]})
    gone = {
        (member.tensor, member.axis): [one for channel in channels for one in member.coordinates[channel]]
        for number, channels in dead.removal.items()
        for member in dead.structure.groups[number].members
    }
    assert gone["stem.weight", 0] == [3]
    smaller = zoo.reload(archive)
    remove_dead_channels(smaller, dead)
    shrinking.assert_same(zoo.reload(smaller), archive, "forward", (sample(7, 4, seed=9),))


def test_an_axis_is_never_emptied() -> None:
    net = Residual()
    cutting.randomize(net, 6)
    archive = zoo.scripted(emptied(net, "up.weight", range(8)).eval())
    smaller = zoo.reload(archive)
    remove_dead_channels(smaller, find_dead_channels(zoo.reload(archive), {"forward": [(sample(5, 4),)]}))
    smaller = zoo.reload(smaller)
    assert smaller.up.weight.shape[0] == 1
    shrinking.assert_same(smaller, archive, "forward", (sample(7, 4, seed=9),))
