"""Nets whose code holds widths as constants: the smaller net is built anew, and takes the smaller tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers import cutting, zoo
from pruning_server.graph.coupling.groups import couple


class Attention(nn.Module):
    """One projection for queries, keys and values, split three ways; written out."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(6, 3 * heads * 4)
        self.out = nn.Linear(heads * 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) * 0.5, -1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, -1))


class Fused(nn.Module):
    """Three projections and the fused op, heads in the batch axis of none."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(6, heads * 4) for _ in range(3))
        self.out = nn.Linear(heads * 4, 6)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, self.heads, 4).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.scaled_dot_product_attention(self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x)))
        return self.out(y.transpose(1, 2).flatten(2))


class Batched(nn.Module):
    """Heads and samples share an axis, as in torch's own attention."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(6, heads * 4) for _ in range(3))
        self.out = nn.Linear(heads * 4, 6)

    def split(self, x: Tensor) -> Tensor:
        t, n, _ = x.shape
        return x.contiguous().view(t, n * self.heads, 4).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (self.split(layer(x).transpose(0, 1)) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)
        y = torch.bmm(weights, v).transpose(0, 1).contiguous().view(t, n, -1)
        return self.out(y.transpose(0, 1))


class Einstein(nn.Module):
    """Attention in einsum."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(6, heads * 4) for _ in range(3))
        self.out = nn.Linear(heads * 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, self.heads, 4) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k), -1)
        return self.out(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(n, t, -1))


class Images(nn.Module):
    """[N, 6, 4, 4] through a first convolution, something in between, and a last one."""

    def __init__(self, width: int, between: nn.Module, made: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, width, 1)
        self.between = between
        self.last = nn.Conv2d(made, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(functional.leaky_relu(self.first(x), 0.5)))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def shuffled(x: Tensor, groups: int, per_group: int) -> Tensor:
    n, _, h, w = x.shape
    return x.view(n, groups, per_group, h, w).transpose(1, 2).reshape(n, groups * per_group, h, w)


def padded(x: Tensor, width: int) -> Tensor:
    return functional.pad(x, [0, 0, 0, 0, 2, 1])[:, : width + 3]


def depthwise(width: int) -> nn.Module:
    return Images(width, nn.Conv2d(width, 2 * width, 3, groups=width), 2 * width)


def whole_groups(groups: int) -> nn.Module:
    return Images(2 * groups, nn.Conv2d(2 * groups, 3 * groups, 3, groups=groups), 3 * groups)


def equal_groups(width: int) -> nn.Module:
    return Images(2 * width, nn.Conv2d(2 * width, 6, 3, groups=2), 6)


def equal_outputs(width: int) -> nn.Module:
    return Images(8, nn.Conv2d(8, 2 * width, 3, groups=2), 2 * width)


def upwards(groups: int) -> nn.Module:
    return Images(groups, nn.ConvTranspose2d(groups, groups, 2, groups=groups), groups)


def upwards_equal(width: int) -> nn.Module:
    return Images(8, nn.ConvTranspose2d(8, 2 * width, 2, groups=2), 2 * width)


def group_norm(groups: int) -> nn.Module:
    return Images(groups * 2, nn.GroupNorm(groups, groups * 2), groups * 2)


def instance_norm(width: int) -> nn.Module:
    return Images(width, nn.InstanceNorm2d(width, affine=True), width)


def shuffle(width: int) -> nn.Module:
    return Images(2 * width, Apply(lambda x: shuffled(x, 2, width)), 2 * width)


def fused_shuffle(width: int) -> nn.Module:
    return Images(2 * width, nn.ChannelShuffle(2), 2 * width)


def glu(width: int) -> nn.Module:
    return Images(2 * width, Apply(lambda x: x.chunk(2, 1)[0] * torch.sigmoid(x.chunk(2, 1)[1])), width)


def slopes(width: int) -> nn.Module:
    return Images(width, nn.PReLU(width), width)


def fused_glu(width: int) -> nn.Module:
    return Images(2 * width, nn.GLU(1), width)


def pixel_shuffle(width: int) -> nn.Module:
    return Images(4 * width, nn.PixelShuffle(2), width)


def pixel_unshuffle(width: int) -> nn.Module:
    return Images(width, nn.PixelUnshuffle(2), 4 * width)


def constant_pad(width: int) -> nn.Module:
    return Images(width, Apply(lambda x: padded(x, width)), width + 3)


def stacked(width: int) -> nn.Module:
    return Images(width, Apply(lambda x: torch.stack([x, -x], 2).flatten(1, 2)), 2 * width)


def added_zeros(width: int) -> nn.Module:
    return Images(width, Apply(lambda x: x + torch.zeros(1, width, 1, 1, dtype=x.dtype).expand(1, width, 4, 4)), width)


SEQUENCE = torch.rand(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(2, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

CASES = [
    # net, width, input, a tensor and axis in the group, channels in the group, coordinates of each
    (Attention, 3, SEQUENCE, "qkv.weight", 0, 3, 12),
    (Fused, 3, SEQUENCE, "q.weight", 0, 3, 4),
    (Batched, 3, SEQUENCE, "v.weight", 0, 3, 4),
    (Einstein, 3, SEQUENCE, "k.weight", 0, 3, 4),
    (depthwise, 4, IMAGES, "first.weight", 0, 4, 1),
    (whole_groups, 4, IMAGES, "first.weight", 0, 4, 2),
    (equal_groups, 4, IMAGES, "first.weight", 0, 4, 2),
    (equal_outputs, 4, IMAGES, "between.weight", 0, 4, 2),
    (upwards, 4, IMAGES, "first.weight", 0, 4, 1),
    (upwards_equal, 4, IMAGES, "between.weight", 1, 4, 1),
    (group_norm, 3, IMAGES, "first.weight", 0, 3, 2),
    (instance_norm, 4, IMAGES, "first.weight", 0, 4, 1),
    (shuffle, 4, IMAGES, "first.weight", 0, 4, 2),
    (fused_shuffle, 4, IMAGES, "first.weight", 0, 4, 2),
    (glu, 4, IMAGES, "first.weight", 0, 4, 2),
    (fused_glu, 4, IMAGES, "first.weight", 0, 4, 2),
    (slopes, 4, IMAGES, "first.weight", 0, 4, 1),
    (pixel_shuffle, 3, IMAGES, "first.weight", 0, 3, 4),
    (pixel_unshuffle, 3, IMAGES, "first.weight", 0, 3, 1),
    (constant_pad, 4, IMAGES, "first.weight", 0, 4, 1),
    (stacked, 4, IMAGES, "first.weight", 0, 4, 1),
    (added_zeros, 4, IMAGES, "first.weight", 0, 4, 1),
]


@pytest.mark.parametrize(
    ("build", "width", "x", "tensor", "axis", "size", "share"), CASES, ids=[case[0].__name__ for case in CASES]
)
def test_masked_equals_rebuilt(
    build: Callable[[int], nn.Module], width: int, x: Tensor, tensor: str, axis: int, size: int, share: int
) -> None:
    net = build(width)
    cutting.randomize(net, seed=3)
    archive = zoo.traced(net, x)
    coupling = couple(zoo.reload(archive), {"forward": [(x,)]})
    number, group = cutting.group_of(coupling, tensor, axis)
    assert group.size == size
    found = next(one for one in group.members if (one.tensor, one.axis) == (tensor, axis))
    assert {len(one) for one in found.coordinates} == {share}
    removed = {number: [1]}
    masked = zoo.reload(archive)
    cutting.zero_consumers(masked, coupling, removed)
    smaller = build(width - 1).double().eval()
    smaller.load_state_dict(cutting.smaller_tensors(archive, coupling, removed))
    with torch.no_grad(), torch.jit.optimized_execution(False):
        expected = masked(x)
        assert not torch.allclose(archive(x), expected, rtol=1e-3, atol=1e-3), "the channel does not matter"
        torch.testing.assert_close(smaller(x), expected, rtol=1e-9, atol=1e-9)
