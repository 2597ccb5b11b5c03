"""Einstein sums in every way of writing them: the smaller net is built anew and equals the masked one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.rebuilding import archived, assert_rebuilt, coupled, free

SEQUENCE = torch.rand(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Einsum(nn.Module):
    """[3, 4, 6] through a linear layer, an einsum with a weight, and a linear layer."""

    def __init__(self, equation: str, width: int, shape: tuple[int, ...], made: int) -> None:
        super().__init__()
        self.equation = equation
        self.first = nn.Linear(6, width)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.last = nn.Linear(made, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.einsum(self.equation, self.first(x), self.weight))


SUMMED = ["btc,co->bto", "...c,co->...o", "btc, cz", "...c,co", "b...c,co->b...o", "...tc,co->...to", "XYc,co->XYo"]
KEPT = ["...c,...c->...c", "btc,c->btc", "...c,c->...c"]


@pytest.mark.parametrize("equation", SUMMED)
@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
def test_what_is_summed_goes_with_the_weight(equation: str, scripted: bool) -> None:
    def summed(width: int) -> nn.Module:
        return Einsum(equation, width, (width, 5), 5)

    def made(width: int) -> nn.Module:
        return Einsum(equation, 5, (5, width), width)

    assert_rebuilt(summed, 4, [SEQUENCE], ("first.weight", 0), size=4, share=1, scripted=scripted)
    assert_rebuilt(made, 4, [SEQUENCE], ("weight", 1), size=4, share=1, scripted=scripted)


@pytest.mark.parametrize("equation", KEPT)
def test_what_is_kept_goes_on(equation: str) -> None:
    assert_rebuilt(
        lambda width: Einsum(equation, width, (width,), width), 4, [SEQUENCE], ("weight", 0), size=4, share=1
    )


def test_an_implicit_result_is_in_the_order_of_the_alphabet() -> None:
    # Capitals come first: [3, 4, c] and [c, A] give [A, 3, 4], of which the last layer sees 4.
    assert_rebuilt(lambda width: Einsum("btc,cA", width, (width, 5), 4), 3, [SEQUENCE], ("weight", 0), size=3, share=1)
    coupling = coupled(archived(Einsum("btc,cA", 3, (3, 5), 4), [SEQUENCE], scripted=False), [SEQUENCE])
    assert ("weight", 1) not in free(coupling)


class Heads(nn.Module):
    """Attention with an ellipsis for samples and heads."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(6, 3 * heads * 4)
        self.out = nn.Linear(heads * 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(torch.einsum("...qd,...kd->...qk", q, k), -1)
        return self.out(torch.einsum("...qk,...kd", weights, v).transpose(1, 2).reshape(n, t, -1))


def test_heads_behind_an_ellipsis() -> None:
    assert_rebuilt(Heads, 3, [SEQUENCE], ("qkv.weight", 0), size=3, share=12)


@pytest.mark.parametrize("equation", ["btcc->btc", "bt...ii->bt...i"])
def test_a_diagonal_stays(equation: str) -> None:
    class Diagonal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Linear(6, 4)
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.rows(x)
            return self.last(torch.einsum(equation, y.unsqueeze(2) * y.unsqueeze(3)))

    coupling = coupled(archived(Diagonal(), [SEQUENCE], scripted=False), [SEQUENCE])
    assert free(coupling) == set()
    assert any("diagonal" in one.reason and "rows.weight" in one.layers for one in coupling.frozen)


class Projected(nn.Module):
    """Heads that are projected without being merged: one weight [heads, 4, 6] sums over both axes."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first = nn.Linear(6, heads * 4)
        self.weight = nn.Parameter(torch.zeros(heads, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bthd,hdo->bto", self.first(x).view(*x.shape[:2], self.heads, 4), self.weight)


def test_heads_that_a_weight_sums_over() -> None:
    assert_rebuilt(Projected, 3, [SEQUENCE], ("weight", 0), size=3, share=1)
    coupling = coupled(archived(Projected(3), [SEQUENCE], scripted=False), [SEQUENCE])
    assert ("weight", 1) not in free(coupling)
