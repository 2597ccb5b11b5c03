"""Ops of further families: the smaller net is built anew and equals the masked one, or the axis stays with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from helpers.rebuilding import archived, assert_rebuilt, coupled, free

SEQUENCE = torch.rand(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(2, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """[3, 4, 6] through a linear layer of `width`, a function, and a linear layer that takes `made`."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int, made: int) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(6, width)
        self.last = nn.Linear(made, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class Images(nn.Module):
    """[N, 6, 4, 4] through a convolution of `width`, a function, and a convolution that takes `made`."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int, made: int) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(6, width, 1)
        self.last = nn.Conv2d(made, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine_similarity": lambda x: x * functional.cosine_similarity(x, x.flip(1), 1)[:, None],
    "pairwise_distance": lambda x: x * functional.pairwise_distance(x.mT, x.flip(1).mT, keepdim=True).mT,
    "fourier": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * 2, n=4, dim=1),
    "fourier of several": lambda x: torch.fft.fft2(x, dim=(0, 1)).real + torch.fft.fftshift(x, 1),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x * 2)).sum(3) + torch.polar(x.abs(), x).imag,
    "from pairs": lambda x: torch.view_as_complex(torch.stack([x, -x], -1)).conj().angle(),
    "logaddexp": lambda x: torch.logaddexp(x, x * 2) + torch.special.expit(x) + x.arcsinh(),
    "tril": lambda x: x.mT.reshape(3, -1, 2, 2).tril().flatten(2).mT,
    "renorm": lambda x: x.renorm(2, 2, 1.0),
    "broadcast": lambda x: torch.broadcast_tensors(x, x[:1, :1])[1] * torch.broadcast_tensors(x, x[:1])[0],
    "hstack": lambda x: torch.hstack([x[:, :1], x[:, 1:]]) + torch.vstack([x[:1], x[1:]]),
    "kthvalue": lambda x: x.kthvalue(2, 1)[0][:, None] + x.cummin(1)[0] + x.sort(1)[0],
}


@pytest.mark.parametrize("name", SAME)
def test_channels_pass(name: str) -> None:
    assert_rebuilt(lambda width: Between(SAME[name], width, width), 5, [SEQUENCE], ("first.weight", 0), size=5, share=1)


def test_distances_between_rows_that_are_channels() -> None:
    def distances(x: Tensor) -> Tensor:
        return torch.cdist(torch.ones(3, 5, 4, dtype=x.dtype), x.mT)

    place = ("first.weight", 0)
    assert_rebuilt(lambda width: Between(distances, width, width), 4, [SEQUENCE], place, size=4, share=1)


def sampled(x: Tensor) -> Tensor:
    turn = torch.tensor([[[0.8, -0.3, 0.1], [0.2, 0.9, 0.0]]], dtype=x.dtype).expand(x.size(0), 2, 3)
    return functional.grid_sample(x, functional.affine_grid(turn, list(x.shape), False), align_corners=False)


def unpooled(x: Tensor) -> Tensor:
    y, places = functional.max_pool2d(x, 2, return_indices=True)
    return torch.ops.aten.max_unpool2d(y, places, [4, 4])


def folded(x: Tensor) -> Tensor:
    return functional.fold(functional.unfold(x, 3, padding=1) * 2, (4, 4), 3, padding=1)


PASSING: dict[str, Callable[[Tensor], Tensor]] = {"grid": sampled, "unpool": unpooled, "fold": folded}


@pytest.mark.parametrize("name", PASSING)
def test_channels_of_images_pass(name: str) -> None:
    assert_rebuilt(lambda width: Images(PASSING[name], width, width), 4, [IMAGES], ("first.weight", 0), size=4, share=1)


def test_patches_of_a_channel_go_together() -> None:
    def build(width: int) -> nn.Module:
        return Images(lambda x: functional.unfold(x, 2).unflatten(2, (3, 3)), width, 4 * width)

    assert_rebuilt(build, 4, [IMAGES], ("last.weight", 1), size=4, share=4)


class Weighted(nn.Module):
    """Products with a stored weight under many names; [3, 4, 6] in."""

    def __init__(self, way: str, width: int, made: int) -> None:
        super().__init__()
        self.way = way
        self.first = nn.Linear(6, width)
        shapes = {
            "tensordot": (width, made),
            "inner": (made, width),
            "addbmm": (3, width, made),
            "conv_tbc": (2, width, made),
            "outer": (made,),
            "linear same": (made, width, 1),
        }
        self.weight = nn.Parameter(torch.zeros(shapes[way]))
        self.bias = nn.Parameter(torch.zeros(made))
        self.last = nn.Linear(made, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way == "tensordot":
            y = torch.tensordot(x, self.weight, dims=([2], [0])) + self.bias
        elif self.way == "inner":
            y = torch.inner(x, self.weight) + self.bias
        elif self.way == "addbmm":
            y = torch.addbmm(self.bias, x, self.weight)
        elif self.way == "conv_tbc":
            y = torch.conv_tbc(x, self.weight, self.bias, 1)
        elif self.way == "outer":
            y = torch.addr(self.bias, x[0].sum(1), self.weight) + torch.outer(x[0, :, 0], self.weight)
        else:
            y = functional.conv1d(x.mT, self.weight, self.bias, padding="same").mT
        return self.last(y)


@pytest.mark.parametrize("way", ["tensordot", "inner", "addbmm", "conv_tbc", "linear same"])
def test_what_a_product_sums(way: str) -> None:
    place = ("first.weight", 0)
    assert_rebuilt(lambda width: Weighted(way, width, 5), 4, [SEQUENCE], place, size=4, share=1)


@pytest.mark.parametrize("way", ["tensordot", "inner", "addbmm", "conv_tbc", "outer", "linear same"])
def test_what_a_product_makes(way: str) -> None:
    place = ("last.weight", 1)
    assert_rebuilt(lambda made: Weighted(way, 5, made), 4, [SEQUENCE], place, size=4, share=1)


class Twice(nn.Module):
    """`bilinear` of two layers."""

    def __init__(self, left: int, right: int, made: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, left), nn.Linear(6, right)
        self.both = nn.Bilinear(left, right, made)
        self.last = nn.Linear(made, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.both(self.left(x), self.right(x)))


def test_bilinear() -> None:
    assert_rebuilt(lambda n: Twice(n, 3, 4), 4, [SEQUENCE], ("left.weight", 0), size=4, share=1)
    assert_rebuilt(lambda n: Twice(3, n, 4), 4, [SEQUENCE], ("both.weight", 2), size=4, share=1)
    assert_rebuilt(lambda n: Twice(3, 4, n), 4, [SEQUENCE], ("both.weight", 0), size=4, share=1)


class WeightNormed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, width, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.middle = nn.utils.weight_norm(nn.Conv2d(4, width, 3))
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)[:, :4]))


def test_rows_of_a_normalized_weight_go_and_its_columns_stay() -> None:
    archive = archived(WeightNormed(5), [IMAGES], scripted=False)
    found = free(coupled(archive, [IMAGES]))
    assert {("middle.weight_v", 0), ("middle.weight_g", 0), ("middle.bias", 0), ("last.weight", 1)} <= found
    assert ("middle.weight_v", 1) not in found


STAYING: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "cdist": ("aten::cdist", lambda x: torch.cdist(x, x)),
    "cosine": (
        "aten::cosine_similarity",
        lambda x: functional.cosine_similarity(x, x * 2, 2)[..., None].repeat(1, 1, 4),
    ),
    "fft": ("aten::fft_fft", lambda x: torch.fft.fft(x).real),
    "tril": ("aten::tril", lambda x: x.tril()),
    "renorm": ("aten::renorm", lambda x: x.renorm(2, 1, 1.0)),
    "diff": ("aten::diff", lambda x: x.diff(dim=1, append=x[:, :1] * 2)),
    "normal": ("aten::randn_like", lambda x: x + torch.randn_like(x)),
    "where": ("aten::where", lambda x: x * torch.where(x > 0.0)[0].size(0)),
    "sorted": ("aten::searchsorted", lambda x: torch.searchsorted(x, x).to(x.dtype)),
}


@pytest.mark.parametrize("name", STAYING)
def test_the_axis_stays(name: str) -> None:
    op, function = STAYING[name]
    net = archived(Between(function, 4, 4), [SEQUENCE], scripted=False)
    coupling = coupled(net, [SEQUENCE])
    assert ("first.weight", 0) not in free(coupling)
    assert any(one.op == op and one.reason and "first.weight" in one.layers for one in coupling.frozen)
