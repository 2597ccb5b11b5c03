"""Functions that return early, and branches that differ in what no channel depends on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import cutting, shrinking, zoo

X = torch.rand(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Step(nn.Module):
    """One of two layers, of which one returns at once; a second result that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor, early: bool) -> tuple[Tensor, Tensor | None]:
        if early:
            return self.one(x), x.mean(-1)
        y = torch.tanh(self.two(x))
        return y, None


class Early(nn.Module):
    """A step between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.step, self.last = nn.Linear(7, 6), Step(), nn.Linear(4, 3)

    def forward(self, x: Tensor, early: bool = False) -> Tensor:
        return self.last(self.step(torch.relu(self.first(x)), early)[0])


class Shorter(nn.Module):
    """A branch that looks at fewer steps, and a dropout in it whose rate is 0 unless the model is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(7, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor, early: bool = False) -> Tensor:
        x = self.one(x)
        rate = 0.5
        if not self.training:
            rate = 0.0
        if early:
            x = x[:, :2] * 2.0
        if rate > 0.0:
            x = functional.dropout(x, rate, training=True)
        return self.last(x)


class Shift(nn.Module):
    """Takes a shift that passes unchanged through branches which the samples decide."""

    def forward(self, x: Tensor, shift: Tensor | None, early: bool) -> Tensor:
        name = ""
        if early:
            name = "early"
        elif x.size(0) > 2:
            name = "many"
        if shift is not None:
            x = x + shift
        return x if name == "" else x * 2.0


class Chosen(nn.Module):
    """Without a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.shift, self.last = nn.Linear(7, 6), Shift(), nn.Linear(6, 3)

    def forward(self, x: Tensor, early: bool = False) -> Tensor:
        return self.last(self.shift(self.one(x), None, early))


PLACES = [(Early, ("step.one.weight", 0)), (Shorter, ("one.weight", 0)), (Chosen, ("one.weight", 0))]


@pytest.mark.parametrize(("net", "free"), PLACES)
@pytest.mark.parametrize("early", [False, True])
def test_both_ways_equal_the_masked_model(net: type[nn.Module], free: tuple[str, int], early: bool) -> None:
    module = net()
    cutting.randomize(module, seed=3)
    runs = {"forward": [(X, False), (X[:1], False), (X, True), (X[:2], True)]}
    sampled = {"forward": [(X, early), (X[:2], early)]}
    structure, _ = shrinking.assert_shrinks(zoo.scripted(module.eval()), sampled, runs)
    assert free in shrinking.free(structure)
