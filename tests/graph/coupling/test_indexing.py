"""Reading and writing at places that a tensor names: exact along other axes, frozen along the indexed one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.rebuilding import archived, assert_rebuilt, coupled, free

SEQUENCE = torch.rand(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """[3, 4, 6] through linear layers with a function of [3, 4, width] between them."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 5) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(6, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def gathered(x: Tensor) -> Tensor:
    rows = torch.tensor([3, 0])[None, :, None].expand(x.size(0), 2, x.size(2))
    return x.gather(1, rows)


def gathered_by_features(x: Tensor) -> Tensor:
    return x.gather(1, x.argmax(1, keepdim=True))


def taken_along(x: Tensor) -> Tensor:
    return torch.take_along_dim(x, torch.tensor([2, 1])[None, :, None], 1)


def scattered(x: Tensor) -> Tensor:
    return torch.zeros_like(x).scatter(1, x.argsort(1), x * 2)


def scatter_added(x: Tensor) -> Tensor:
    rows = torch.tensor([3, 0, 0, 1])[None, :, None].expand(x.shape)
    return x.scatter_add(1, rows, x)


def reduced_in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.scatter_reduce_(1, x.argsort(1), x, "amax")
    return y


def added_at(x: Tensor) -> Tensor:
    return x.index_add(1, torch.tensor([2, 2]), x[:, :2] * 3)


def copied_at(x: Tensor) -> Tensor:
    return x.index_copy(1, torch.tensor([2, 1]), x[:, :2] * 3).index_fill(1, torch.tensor([0]), 2.0)


def put_at(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, torch.tensor([0, 2])] = x[:, 1:3] * 2
    y[torch.tensor([True, False, True])] = x[1:]
    y[torch.tensor([0, 1]), torch.tensor([3, 1])] = x[0, :2]
    return y


def put_below(x: Tensor) -> Tensor:
    y = x.clone()
    y[x < 0.2] = 0.5
    return y


def picked(x: Tensor) -> Tensor:
    return x[:, torch.tensor([3, 1, 0])].index_select(0, torch.tensor([2, 2]))


def flipped(x: Tensor) -> Tensor:
    return x.flip(2) * 2 + x.flip(1)


def rolled(x: Tensor) -> Tensor:
    return x.roll(1, 1)


def repeated(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).view(*x.shape, 2).sum(3)


EXACT = [
    gathered,
    gathered_by_features,
    taken_along,
    scattered,
    scatter_added,
    reduced_in_place,
    added_at,
    copied_at,
    put_at,
    put_below,
    picked,
    rolled,
    repeated,
]


@pytest.mark.parametrize("function", EXACT, ids=[function.__name__ for function in EXACT])
def test_masked_equals_rebuilt(function: Callable[[Tensor], Tensor]) -> None:
    assert_rebuilt(lambda width: Between(function, width), 5, [SEQUENCE], ("first.weight", 0), size=5, share=1)


def test_flipped_channels_go_in_pairs() -> None:
    place = ("first.weight", 0)

    def build(pairs: int) -> nn.Module:
        return Between(flipped, 2 * pairs)

    assert_rebuilt(build, 3, [SEQUENCE], place, size=3, share=2)


FROZEN: dict[str, Callable[[Tensor], Tensor]] = {
    "gather": lambda x: x.gather(2, torch.tensor([3, 1, 0, 2, 4]).expand(3, 4, 5)),
    "take_along_dim": lambda x: torch.take_along_dim(x, torch.tensor([3, 1, 0, 2, 4])[None, None], 2),
    "scatter": lambda x: torch.zeros_like(x).scatter(2, x.argsort(2), x),
    "index_add": lambda x: x.index_add(2, torch.tensor([2, 1]), x[:, :, :2]),
    "index_put_": lambda x: x.clone().index_put_((torch.tensor([0]), torch.tensor([1]), torch.tensor([2])), x[0, 0, 0]),
    "index": lambda x: x[..., torch.tensor([4, 3, 2, 1, 0])],
    "index_select": lambda x: x.index_select(2, torch.tensor([4, 3, 2, 1, 0])),
    "masked_select": lambda x: torch.masked_select(x, x > -100.0).view(3, 4, 5),
    "masked_scatter": lambda x: x.masked_scatter(x > 0.5, x * 2),
    "take": lambda x: x.take(torch.arange(60).view(3, 4, 5)),
    "roll": lambda x: x.roll(2, 2),
}


@pytest.mark.parametrize("op", FROZEN)
def test_the_indexed_axis_stays(op: str) -> None:
    coupling = coupled(archived(Between(FROZEN[op]), [SEQUENCE], scripted=False), [SEQUENCE])
    assert free(coupling) == set()
    assert any(one.op == f"aten::{op}" and "first.weight" in one.layers and one.reason for one in coupling.frozen)


def test_a_shorter_index_takes_the_first_channels() -> None:
    def function(x: Tensor) -> Tensor:
        rows = torch.zeros(3, 1, 2, dtype=torch.int64)
        return torch.cat([x[:, :1, :3], x.gather(1, rows)], 2)

    coupling = coupled(archived(Between(function), [SEQUENCE], scripted=False), [SEQUENCE])
    assert ("first.weight", 0) not in free(coupling)


class Listed(nn.Module):
    """Indices from lists in the code of a scripted archive."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.last = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).index_select(1, torch.tensor([2, 0, 1], dtype=torch.int32))
        return self.last(y[:, torch.tensor([[0, 1], [2, 2]])] * torch.tensor([[0.5], [2.0]], dtype=torch.float64))


def test_indices_from_lists() -> None:
    assert_rebuilt(Listed, 4, [SEQUENCE], ("first.weight", 0), size=4, share=1, scripted=True)
