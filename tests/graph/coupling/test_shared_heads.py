"""Attention whose heads share keys and values: they go together; rotary positions leave whole heads removable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.rebuilding import assert_rebuilt

SEQUENCE = torch.rand(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WIDTH = 4


class Shared(nn.Module):
    """`heads` heads of keys and values, each for `times` heads of queries."""

    def __init__(self, heads: int, times: int, way: str) -> None:
        super().__init__()
        self.heads, self.times, self.way = heads, times, way
        self.q = nn.Linear(6, heads * times * WIDTH)
        self.k = nn.Linear(6, heads * WIDTH)
        self.v = nn.Linear(6, heads * WIDTH)
        self.out = nn.Linear(heads * times * WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, -1, WIDTH).transpose(1, 2)
        k, v = (layer(x).view(n, t, -1, WIDTH).transpose(1, 2) for layer in (self.k, self.v))
        q, k = self.turn(q), self.turn(k)
        if self.way == "fused":
            y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            y = torch.softmax(q @ self.repeat(k).transpose(2, 3) * 0.5, -1) @ self.repeat(v)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))

    def turn(self, x: Tensor) -> Tensor:
        return x

    def repeat(self, x: Tensor) -> Tensor:
        if self.way == "interleaved":
            return x.repeat_interleave(self.times, 1)
        n, heads, t, width = x.shape
        expanded = x[:, :, None, :, :].expand(n, heads, self.times, t, width)
        return expanded.reshape(n, heads * self.times, t, width)


class Rotary(Shared):
    """With positions that turn the halves of a head, from frequencies that are stored."""

    def __init__(self, heads: int, times: int, way: str) -> None:
        super().__init__(heads, times, way)
        self.register_buffer("frequencies", torch.zeros(WIDTH // 2))

    def turn(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[2], dtype=x.dtype)
        angles = positions[:, None] * self.frequencies
        angles = torch.cat([angles, angles], -1)
        first, second = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


@pytest.mark.parametrize("net", [Shared, Rotary])
@pytest.mark.parametrize("way", ["fused", "interleaved", "expanded"])
@pytest.mark.parametrize("times", [2, 5])
def test_heads_go_with_all_that_share_them(net: type[Shared], way: str, times: int) -> None:
    assert_rebuilt(lambda heads: net(heads, times, way), 3, [SEQUENCE], ("q.weight", 0), size=3, share=times * WIDTH)
