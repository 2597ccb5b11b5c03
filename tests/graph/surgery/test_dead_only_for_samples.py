"""Channels that are constants for the samples only: they must not be folded into biases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers import cutting, shrinking, zoo
from pruning_server.graph.dead_channels import find_dead_channels, remove_dead_channels


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1


def expanded(y: Tensor, x: Tensor) -> Tensor:
    return y + torch.relu(x[:, :1]).expand(-1, 6)


def by_a_branch(y: Tensor, x: Tensor) -> Tensor:
    if bool(x.mean() > 0.0):
        y = y + 2
    return y


def by_a_number_of_all_samples(y: Tensor, x: Tensor) -> Tensor:
    return y + torch.relu(x.mean())


def by_a_number_in_the_code(y: Tensor, x: Tensor) -> Tensor:
    return y * max(float(x.mean()), 0.1)


def by_the_batch(y: Tensor, x: Tensor) -> Tensor:
    return y * (2.0 if x.shape[0] < 4 else 3.0)


def by_a_mask(y: Tensor, x: Tensor) -> Tensor:
    y = y.clone()
    y[x[:, 0] > 0] = 0.7
    return y


class Between(nn.Module):
    """Channels 1 and 4 of the first layer have no kernel."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.relu(self.first(x)), x))


def emptied(net: nn.Module) -> nn.Module:
    cutting.randomize(net, 1)
    with torch.no_grad():
        weight, bias = net.get_parameter("first.weight"), net.get_parameter("first.bias")
        weight[[1, 4]] = 0
        bias[1], bias[4] = 0.4, -0.2
    return net.eval()


@pytest.mark.parametrize(
    "function",
    [expanded, by_a_branch, by_a_number_of_all_samples, by_a_number_in_the_code, by_the_batch, by_a_mask],
)
def test_other_inputs_give_the_same(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    archive = zoo.scripted(emptied(Between(function)))
    smaller = zoo.reload(archive)
    remove_dead_channels(
        smaller, find_dead_channels(zoo.reload(archive), {"forward": [(-sample(2, 4),), (-sample(3, 4),)]})
    )
    for inputs in ((sample(5, 4),), (-sample(6, 4),)):
        shrinking.assert_same(zoo.reload(smaller), archive, "forward", inputs)


class Adjusted(nn.Module):
    """Methods set numbers, switches and a tensor that forward uses."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)
        self.scale = 1.0
        self.shifts = False
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("level", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        if self.how == "number":
            y = torch.clamp(y, min=self.scale * 2 - 2)
        elif self.how == "switch":
            if self.shifts:
                y = y - 1
        elif self.how == "tensor":
            y = y * self.gain
        else:
            y = y * self.level
        return self.last(y)

    @torch.jit.export
    def adjust(self, scale: float, shifts: bool) -> None:
        self.scale = scale
        self.shifts = shifts
        self.gain = torch.tensor(scale, dtype=torch.double)
        self.level.fill_(scale)


@pytest.mark.parametrize("how", ["number", "switch", "tensor", "tensor in place"])
def test_what_methods_set_is_no_constant(how: str) -> None:
    archive = zoo.scripted(emptied(Adjusted(how)))
    smaller = zoo.reload(archive)
    remove_dead_channels(smaller, find_dead_channels(zoo.reload(archive), {"forward": [(sample(2, 4),)]}))
    smaller = zoo.reload(smaller)
    for module in (smaller, archive):
        module.adjust(3.0, True)
    shrinking.assert_same(smaller, archive, "forward", (sample(5, 4),))


class Summed(nn.Module):
    """A sum over space, which is larger for larger images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 1)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)).sum([2, 3]))


def test_sums_over_space_are_no_constants_but_zeros_are() -> None:
    archive = zoo.scripted(emptied(Summed()))
    found = find_dead_channels(zoo.reload(archive), {"forward": [(sample(2, 4, 5, 5),)]})
    assert [list(channels) for channels in found.removal.values()] == [[4]]
    smaller = zoo.reload(archive)
    remove_dead_channels(smaller, found)
    shrinking.assert_same(zoo.reload(smaller), archive, "forward", (sample(2, 4, 7, 7),))
