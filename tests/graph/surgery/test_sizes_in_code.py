"""Numbers that are read off channels and meet slices, repetitions, lists, keys and texts in the code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import cutting, shrinking, zoo
from pruning_server.graph.structure import analyse


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.3


class Between(nn.Module):
    """What a function does with eight channels."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.tanh(self.first(x))))


def from_before_the_start(x: Tensor) -> Tensor:
    return x[:, -20:]


def to_behind_the_end(x: Tensor) -> Tensor:
    return x[:, :20]


def parts_in_a_loop(x: Tensor) -> Tensor:
    parts: list[Tensor] = []
    for i in range(2):
        parts.append(x[:, i * 4 : (i + 1) * 4] * (i + 1))  # noqa: PERF401 - the loop is the point
    return torch.cat(parts, 1)


def as_a_key(x: Tensor) -> Tensor:
    found: dict[int, Tensor] = {}
    found[x.shape[1]] = x
    return found[8]


def as_a_key_of_a_literal(x: Tensor) -> Tensor:
    return {x.shape[1]: x}[8]


def in_a_text(x: Tensor) -> Tensor:
    return x * 2 if f"width {x.shape[1]}" == "width 8" else x


def among_others(x: Tensor) -> Tensor:
    return x * 2 if 8 in x.shape else x


def sorted_by_size(x: Tensor) -> Tensor:
    sizes = [6, x.shape[1]]
    sizes.sort()
    return x * sizes[0]


def repeated_by_size(x: Tensor) -> Tensor:
    return x + torch.ones(1, 2, dtype=x.dtype).cumsum(1).repeat(1, x.shape[1]).mean(1, keepdim=True)


def summed_up_to_size(x: Tensor) -> Tensor:
    return x + torch.arange(5, dtype=x.dtype)[: x.shape[1]].sum()


def squeezed(x: Tensor) -> Tensor:
    return x[:, :, None, None].squeeze()


def squeezed_on_its_axis(x: Tensor) -> Tensor:
    y = x.squeeze(1)
    return y if y.dim() == 2 else y[:, None] * 2


@pytest.mark.parametrize(
    "function",
    [
        from_before_the_start,
        to_behind_the_end,
        parts_in_a_loop,
        as_a_key,
        as_a_key_of_a_literal,
        in_a_text,
        among_others,
        sorted_by_size,
        repeated_by_size,
        summed_up_to_size,
        squeezed,
        squeezed_on_its_axis,
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_shrunk_equals_masked(function: Callable[[Tensor], Tensor], share: float) -> None:
    net = Between(function)
    cutting.randomize(net, 1)
    runs = [(sample(2, 4),), (sample(3, 4),)]
    checked = {"forward": [(sample(5, 4),)]}
    for seed in range(2):
        shrinking.assert_shrinks(zoo.scripted(net.eval()), {"forward": runs}, checked, seed=seed, share=share)


def narrowed_from_a_tensor(x: Tensor) -> Tensor:
    return torch.narrow(x, 1, torch.tensor(2), 4)


def repeated_by_a_list(x: Tensor) -> Tensor:
    return torch.repeat_interleave(x, torch.tensor([1, 0, 0, 1, 0, 0, 1, 1]), dim=1)


@pytest.mark.parametrize("function", [narrowed_from_a_tensor, repeated_by_a_list])
@pytest.mark.parametrize("scripted", [True, False])
def test_what_a_tensor_names_stays(function: Callable[[Tensor], Tensor], scripted: bool) -> None:
    net = Between(function, width=4)
    cutting.randomize(net, 2)
    x = sample(2, 4)
    archive = zoo.scripted(net.eval()) if scripted else zoo.traced(net, x)
    structure, _ = shrinking.assert_shrinks(archive, {"forward": [(x,), (sample(3, 4),)]}, {"forward": [(x,)]})
    assert not structure.groups


class Blurred(nn.Module):
    """One kernel for every channel, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.last = nn.Conv2d(8, 2, 1)
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = functional.conv2d(y, self.kernel.expand(y.shape[1], 1, 3, 3), groups=y.shape[1], padding=1)
        return self.last(functional.group_norm(y, y.shape[1]))


def test_groups_that_are_read_off_the_channels_follow_them() -> None:
    net = Blurred()
    cutting.randomize(net, 3)
    x = sample(2, 3, 6, 6)
    structure, smaller = shrinking.assert_shrinks(
        zoo.scripted(net.eval()), {"forward": [(x,), (sample(3, 3, 5, 5),)]}, {"forward": [(sample(4, 3, 7, 7),)]}
    )
    assert [group.size for group in structure.groups] == [8]
    assert smaller.first.weight.shape[0] == 4


class Counting(nn.Module):
    """A loop that ends only where its branch is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        count = x.shape[0]
        if count > 100:
            while count != 50:
                count -= 1
            y = y * count
        return self.last(y)


def test_a_loop_in_a_branch_that_was_not_taken_ends() -> None:
    structure = analyse(zoo.scripted(Counting().double().eval()), {"forward": [(sample(2, 4),), (sample(3, 4),)]})
    assert not structure.groups
    assert any("a branch that the samples did not take" in use.reason for use in structure.frozen)
