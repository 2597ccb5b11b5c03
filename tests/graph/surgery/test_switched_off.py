"""What *masked* must zero so that a channel is off: every tensor that makes a weight, and where nothing shifts zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import cutting, shrinking, zoo


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.3


class Composed(nn.Module):
    """A weight that several stored tensors make."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(4, 8)
        self.one = nn.Parameter(torch.rand(6, 8))
        self.other = nn.Parameter(torch.rand(6, 8))
        self.down = nn.Parameter(torch.rand(2, 8))
        self.up = nn.Parameter(torch.rand(6, 2))
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        if self.how == "low rank":
            y = functional.linear(y, self.one + self.up @ self.down)
        elif self.how == "addmm":
            y = functional.linear(y, torch.addmm(self.one, self.up, self.down, alpha=2))
        elif self.how == "chain":
            y = functional.linear(y, (self.one + self.other) + self.up @ self.down)
        elif self.how == "stack":
            y = torch.einsum("bi,eoi->beo", y, torch.stack([self.one, self.other])).mean(1)
        else:
            weight = self.one
            if bool(x.sum() > 0):
                weight = self.other
            y = functional.linear(y, weight)
        return self.last(torch.relu(y))


@pytest.mark.parametrize("how", ["low rank", "addmm", "chain", "stack"])
@pytest.mark.parametrize("scripted", [True, False])
def test_all_tensors_that_make_a_weight_are_switched_off(how: str, scripted: bool) -> None:
    net = Composed(how)
    cutting.randomize(net, 1)
    x = sample(2, 4)
    archive = zoo.scripted(net.eval()) if scripted else zoo.traced(net, x)
    structure, _ = shrinking.assert_shrinks(
        archive, {"forward": [(x,), (sample(3, 4),)]}, {"forward": [(sample(5, 4),)]}
    )
    assert ("first.weight", 0) in shrinking.free(structure)


def test_weights_of_both_branches_are_switched_off() -> None:
    net = Composed("branch")
    cutting.randomize(net, 1)
    checked = {"forward": [(sample(5, 4).abs(),), (-sample(5, 4).abs(),)]}
    runs = [(sample(2, 4).abs(),), (sample(3, 4).abs(),)]
    structure, _ = shrinking.assert_shrinks(zoo.scripted(net.eval()), {"forward": runs}, checked)
    assert ("first.weight", 0) in shrinking.free(structure)


class Attended(nn.Module):
    """Channels of queries and keys are multiplied and summed; a function sees both before."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.query = nn.Linear(4, 6)
        self.key = nn.Linear(4, 6)
        self.value = nn.Linear(4, 6)
        self.last = nn.Linear(6, 3)
        self.row = nn.Parameter(torch.rand(5, 1))
        self.mixer = nn.Parameter(torch.rand(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        query = self.function(self.query(x), x, self.row, self.mixer)
        key = self.function(self.key(x), x, self.row, self.mixer)
        # No softmax: it would hide what is added to all scores.
        return self.last(torch.tanh(query @ key.transpose(1, 2)) @ self.value(x))


def as_it_is(y: Tensor, _x: Tensor, _row: Tensor, _mixer: Tensor) -> Tensor:
    return y


def one_number_per_row(y: Tensor, _x: Tensor, row: Tensor, _mixer: Tensor) -> Tensor:
    return y + row


def ones(y: Tensor, _x: Tensor, _row: Tensor, _mixer: Tensor) -> Tensor:
    return y + torch.ones(6, dtype=y.dtype)


def expanded(y: Tensor, x: Tensor, _row: Tensor, _mixer: Tensor) -> Tensor:
    return y + x[:, :, :1].expand(-1, -1, 6)


def padded(y: Tensor, _x: Tensor, _row: Tensor, _mixer: Tensor) -> Tensor:
    return functional.pad(y, [0, 2], value=1.0)


def mixed_over_rows(y: Tensor, _x: Tensor, row: Tensor, mixer: Tensor) -> Tensor:
    return functional.linear(y.transpose(1, 2), mixer, row[:, 0]).transpose(1, 2)


def normalized_over_rows(y: Tensor, _x: Tensor, row: Tensor, _mixer: Tensor) -> Tensor:
    return functional.layer_norm(y.transpose(1, 2), [5], row[:, 0], row[:, 0]).transpose(1, 2)


@pytest.mark.parametrize(
    ("function", "free"),
    [
        (as_it_is, True),
        (one_number_per_row, False),
        (ones, False),
        (expanded, False),
        (padded, False),
        (mixed_over_rows, False),
        (normalized_over_rows, False),
    ],
)
def test_zeros_that_something_is_added_to(function: Callable[..., Tensor], free: bool) -> None:
    net = Attended(function)
    cutting.randomize(net, 2)
    structure, _ = shrinking.assert_shrinks(
        zoo.scripted(net.eval()),
        {"forward": [(sample(2, 5, 4),), (sample(3, 5, 4),)]},
        {"forward": [(sample(4, 5, 4),)]},
    )
    assert (("query.weight", 0) in shrinking.free(structure)) == free
    assert ("value.weight", 0) in shrinking.free(structure)


class Dynamic(nn.Module):
    """Kernels of a convolution that depend on the sample, all samples in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.kernel = nn.Parameter(torch.rand(1, 4, 6, 3, 3))
        self.style = nn.Linear(6, 6)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        batch, channels, height, width = y.shape
        kernel = self.kernel * self.style(y.mean([2, 3]))[:, None, :, None, None]
        y = functional.conv2d(
            y.reshape(1, -1, height, width), kernel.reshape(-1, channels, 3, 3), padding=1, groups=batch
        )
        return self.last(torch.relu(y.view(batch, -1, height, width)))


def test_a_computed_kernel_is_switched_off_with_its_input() -> None:
    net = Dynamic()
    cutting.randomize(net, 3)
    structure, _ = shrinking.assert_shrinks(
        zoo.scripted(net.eval()),
        {"forward": [(sample(2, 3, 6, 6),), (sample(3, 3, 5, 5),)]},
        {"forward": [(sample(4, 3, 7, 7),), (sample(1, 3, 4, 4),)]},
    )
    assert {("first.weight", 0), ("last.weight", 1)} <= shrinking.free(structure)


class NormedUp(nn.Module):
    """A transposed convolution whose kernel is normalized along its input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 8, 1)
        self.up = nn.ConvTranspose1d(8, 4, 2, stride=2)
        self.length = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch._weight_norm(self.up.weight, self.length, 0)
        return functional.conv_transpose1d(torch.relu(self.first(x)), kernel, self.up.bias, stride=2)


def test_a_normalized_kernel_is_switched_off_by_its_lengths() -> None:
    net = NormedUp()
    cutting.randomize(net, 11)
    x = torch.rand(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    archive = zoo.traced(net, x)
    structure, smaller = shrinking.assert_shrinks(
        archive, {"forward": [(x,), (x[:1],)]}, {"forward": [(x.repeat(2, 1, 2),)]}
    )
    assert [group.size for group in structure.groups] == [8]
    assert torch.isfinite(smaller(x)).all()
