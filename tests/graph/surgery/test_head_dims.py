"""Attention loses dimensions inside its heads, the same in every head: written out or fused, turned, shared or biased."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from helpers import cutting, shrinking, zoo
from pruning_server.graph.structure import Structure, analyse

SEQUENCE = torch.rand(3, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def turned_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Positions turn dimensions i and i + d / 2."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Attention(nn.Module):
    """`heads` heads of `width` queries and keys and `made` values; every part in the way that is asked for."""

    def __init__(
        self,
        heads: int,
        width: int,
        made: int,
        *,
        packed: str = "",
        score: str = "matmul",
        turn: str = "",
        bias: str = "",
    ) -> None:
        super().__init__()
        self.heads, self.width, self.made = heads, width, made
        self.packed, self.score, self.turn, self.bias = packed, score, turn, bias
        self.qkv = nn.Linear(7, heads * (2 * width + made))
        self.q = nn.Linear(7, heads * width)
        self.k = nn.Linear(7, heads * width)
        self.v = nn.Linear(7, heads * made)
        self.out = nn.Linear(heads * made, 3)
        self.table = nn.Embedding(8, heads)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("frequencies", torch.zeros(width // 2))
        self.register_buffer("cos", torch.zeros(9, width))
        self.register_buffer("sin", torch.zeros(9, width))
        self.register_buffer("slopes", torch.zeros(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.project(x)
        if self.turn:
            q, k = self.turned(q), self.turned(k)
        y = self.attend(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, t, self.heads * self.made))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t, _ = x.shape
        rows = self.heads * self.width
        if self.packed == "reshape":
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        if self.packed == "chunk":
            parts = self.qkv(x).chunk(3, -1)
        elif self.packed == "addmm":  # GPT-2
            weight, bias = self.qkv.weight.t(), self.qkv.bias
            parts = torch.addmm(bias, x.view(-1, 7), weight).view(n, t, -1).split(rows, dim=2)
        elif self.packed == "split":
            parts = self.qkv(x).split([rows, rows, self.heads * self.made], -1)
        else:
            parts = (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in parts)
        return q, k, v

    def turned(self, x: Tensor) -> Tensor:
        if self.turn == "norm":
            return self.norm(x)
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * self.frequencies
        if self.turn == "pairs":  # dimensions 2 i and 2 i + 1
            one, other = x[..., ::2], x[..., 1::2]
            parts = [one * angles.cos() - other * angles.sin(), one * angles.sin() + other * angles.cos()]
            return torch.stack(parts, -1).flatten(-2)
        if self.turn == "computed":
            angles = torch.cat([angles, angles], -1)
            return turned_halves(x, angles.cos(), angles.sin())
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        if self.turn == "halves":
            return turned_halves(x, cos, sin)
        some = 2 * (self.width // 4)  # only the first dimensions are turned
        return torch.cat([turned_halves(x[..., :some], cos[:, :some], sin[:, :some]), x[..., some:]], -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = 1 / math.sqrt(self.width)
        if self.score == "fused":
            return functional.scaled_dot_product_attention(q, k, v)
        if self.score == "causal":
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        if self.score == "einsum":
            shares = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) * scale, -1)
            return torch.einsum("bhqk,bhkd->bhqd", shares, v)
        if self.score == "rows":
            n, h, t, _ = q.shape
            q, k, v = (one.reshape(n * h, t, -1) for one in (q, k, v))
            return torch.bmm(torch.softmax(torch.baddbmm(torch.zeros(1, 1, 1).to(q), q, k.mT), -1), v).view(n, h, t, -1)
        scores = q @ k.transpose(2, 3) / (q.size(-1) ** 0.5)
        if self.bias == "table":  # T5
            places = (torch.arange(q.size(2))[:, None] - torch.arange(k.size(2))).clamp(-4, 3) + 4
            scores = scores + self.table(places).permute(2, 0, 1)
        if self.bias == "slopes":  # ALiBi
            scores = scores + self.slopes * torch.arange(k.size(2), dtype=q.dtype)
        return torch.softmax(scores, -1) @ v


def shrunk_somehow(net: nn.Module, *, scripted: bool = False, seed: int = 0, head_dims: bool = True) -> Structure:
    """Half of what can go is removed, and equals the masked model; what was promised is what is there."""
    cutting.randomize(net, seed=3)
    archive = zoo.scripted(net.eval()) if scripted else zoo.traced(net, SEQUENCE)
    runs = {"forward": [(SEQUENCE,), (SEQUENCE[:2],)]}
    structure = analyse(zoo.reload(archive), runs, batch_size=3, head_dims=head_dims)
    assert not structure.failed_rules
    removal = shrinking.draw(structure, seed)
    smaller, cut = shrinking.shrunk(archive, structure, removal)
    masked = shrinking.mask(archive, cut)
    for inputs in [(SEQUENCE,), (SEQUENCE[:1],)]:
        shrinking.assert_same(smaller, masked, "forward", inputs)
    if cut:
        with torch.no_grad():
            assert not torch.allclose(smaller(SEQUENCE), archive(SEQUENCE), rtol=1e-4, atol=1e-4)
    counted = analyse(zoo.reload(smaller), {"forward": [(SEQUENCE,)]}, batch_size=3).cost({})
    assert counted == structure.cost(removal)
    return structure


def groups_at(structure: Structure, tensor: str) -> list[tuple[str, int, int]]:
    """Kind, size and coordinates per channel of what lies on the rows of a tensor."""
    return [
        (group.kind, group.size, len(member.coordinates[0]))
        for group in structure.groups
        for member in group.members
        if (member.tensor, member.axis) == (tensor, 0)
    ]


@pytest.mark.parametrize("score", ["matmul", "fused", "causal", "einsum", "rows"])
def test_queries_and_keys_lose_some_dimensions_and_values_others(score: str) -> None:
    structure = shrunk_somehow(Attention(2, 6, 5, score=score))
    for name in ("q", "k"):
        assert groups_at(structure, f"{name}.weight") == [("channel", 6, 2)]
    assert groups_at(structure, "v.weight") == [("channel", 5, 2)]
    assert structure.attention_by_dims == 1


@pytest.mark.parametrize("score", ["matmul", "fused"])
def test_sizes_are_adapted_in_scripted_code(score: str) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(7, 12), nn.Linear(7, 12), nn.Linear(7, 10)
            self.out = nn.Linear(10, 3)
            self.fused = score == "fused"

        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            q = self.q(x).view(n, t, 2, 6).transpose(1, 2)
            k = self.k(x).view(n, t, 2, 6).transpose(1, 2)
            v = self.v(x).view(n, t, 2, 5).transpose(1, 2)
            if self.fused:
                y = functional.scaled_dot_product_attention(q, k, v)
            else:
                y = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.size(-1)), -1) @ v
            return self.out(y.transpose(1, 2).reshape(n, t, 10))

    structure = shrunk_somehow(Plain(), scripted=True)
    assert groups_at(structure, "k.weight") == [("channel", 6, 2)]


@pytest.mark.parametrize("score", ["matmul", "fused"])
@pytest.mark.parametrize("packed", ["chunk", "addmm", "split"])
def test_packed_projections_are_split_unevenly(packed: str, score: str) -> None:
    structure = shrunk_somehow(Attention(2, 6, 6, packed=packed, score=score))
    # One dimension of the queries and keys stays for good, since of their part of the rows nothing would be left. The
    # fused kernel is slow where values are not as wide as queries.
    apart = [("channel", 5, 4), ("channel", 6, 2)]
    assert groups_at(structure, "qkv.weight") == ([("channel", 6, 6)] if score == "fused" else apart)


def test_one_index_over_queries_keys_and_values_has_one_number_of_dimensions() -> None:
    structure = shrunk_somehow(Attention(2, 6, 6, packed="reshape"))
    assert groups_at(structure, "qkv.weight") == [("channel", 6, 6)]


def test_whole_heads_go_where_there_are_more_of_them_and_on_demand() -> None:
    assert groups_at(shrunk_somehow(Attention(6, 2, 2)), "q.weight") == [("head", 6, 2)]
    assert groups_at(shrunk_somehow(Attention(2, 6, 5), head_dims=False), "q.weight") == [("head", 2, 6)]


@pytest.mark.parametrize("score", ["matmul", "fused"])
def test_a_position_turns_pairs_of_dimensions_that_go_together(score: str) -> None:
    structure = shrunk_somehow(Attention(2, 8, 5, turn="halves", score=score))
    assert groups_at(structure, "q.weight") == [("channel", 4, 4)]
    assert ("cos", 1) in shrinking.free(structure)
    assert groups_at(structure, "v.weight") == [("channel", 5, 2)]


def test_only_some_dimensions_are_turned() -> None:
    structure = shrunk_somehow(Attention(2, 8, 5, turn="some"))
    # One of the two pairs stays, so that something is turned.
    assert sorted(groups_at(structure, "q.weight")) == [("channel", 1, 4), ("channel", 4, 2)]


@pytest.mark.parametrize("turn", ["pairs", "norm", "computed"])
def test_where_dimensions_cannot_go_whole_heads_do(turn: str) -> None:
    # Every second dimension is taken by step; a norm goes over all of them; cos(0) is not 0, which the proof would need.
    structure = shrunk_somehow(Attention(2, 8, 5, turn=turn))
    assert groups_at(structure, "q.weight") == [("channel" if turn == "norm" else "head", 2, 8)]
    assert structure.attention_by_dims == 0


class Layers(nn.Module):
    """Attention over and over, with the same positions everywhere."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(2, 8, 5, turn="halves") for _ in range(count))
        self.up = nn.ModuleList(nn.Linear(3, 7) for _ in range(count))
        self.double()  # now, since it would part the tables
        for layer in self.layers:
            layer.cos, layer.sin = self.layers[0].cos, self.layers[0].sin

    def forward(self, x: Tensor) -> Tensor:
        for layer, up in zip(self.layers, self.up, strict=True):
            x = x + up(layer(x))
        return x


def test_dimensions_that_all_layers_share_are_not_preferred_to_more_heads() -> None:
    few, many = shrunk_somehow(Layers(1)), shrunk_somehow(Layers(3))
    assert groups_at(few, "layers.0.q.weight") == [("channel", 4, 4)]  # 4 pairs, or 2 heads
    assert groups_at(many, "layers.0.q.weight") == [("head", 2, 8)]  # 4 pairs in all, or 2 heads in each


@pytest.mark.parametrize("bias", ["table", "slopes"])
def test_a_bias_per_head_keeps_the_heads_and_not_the_dimensions(bias: str) -> None:
    assert groups_at(shrunk_somehow(Attention(2, 6, 5, bias=bias)), "q.weight") == [("channel", 6, 2)]
    whole = shrunk_somehow(Attention(2, 6, 5, bias=bias), head_dims=False)
    assert groups_at(whole, "q.weight") == [("head", 2, 6)]


class Grouped(nn.Module):
    """Two heads of queries share each of keys and values."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(7, 4 * 6), nn.Linear(7, 2 * 6), nn.Linear(7, 2 * 6)
        self.out = nn.Linear(4 * 6, 3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, -1, 6).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.way == "fused":
            y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            k, v = (one[:, :, None].expand(n, 2, 2, t, 6).reshape(n, 4, t, 6) for one in (k, v))
            y = torch.softmax(q @ k.mT * 0.4, -1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


@pytest.mark.parametrize("way", ["fused", "expanded"])
def test_heads_that_share_keys_lose_the_same_dimensions(way: str) -> None:
    structure = shrunk_somehow(Grouped(way))
    assert groups_at(structure, "q.weight") == [("channel", 6, 4)]
    assert groups_at(structure, "k.weight") == [("channel", 6, 2)]
    assert groups_at(structure, "v.weight") == [("channel", 6, 2)]


class Single(nn.Module):
    """One head, without a split."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(7, 6), nn.Linear(5, 6), nn.Linear(5, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        other = x[..., :5]
        return self.out(functional.scaled_dot_product_attention(self.q(x), self.k(other), self.v(other)))


def test_the_scale_of_a_single_head_is_written_out() -> None:
    structure = shrunk_somehow(Single())
    assert groups_at(structure, "q.weight") == [("channel", 6, 1)]
    assert groups_at(shrunk_somehow(Single(), head_dims=False), "q.weight") == []


class Unwritten(nn.Module):
    """The scale is an argument that may be missing, so that no constant can take its place."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(7, 6)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        q = self.q(x)
        return functional.scaled_dot_product_attention(q, q, x, scale=scale)


def test_a_scale_that_may_come_from_outside_keeps_the_dimensions() -> None:
    structure = shrunk_somehow(Unwritten(), scripted=True)
    assert groups_at(structure, "q.weight") == []
    assert any("scale" in one.reason for one in structure.frozen)


NETS = st.fixed_dictionaries(
    {
        "packed": st.sampled_from(["", "chunk", "addmm", "split", "reshape"]),
        "score": st.sampled_from(["matmul", "fused", "causal", "einsum", "rows"]),
        "turn": st.sampled_from(["", "halves", "some", "computed", "pairs", "norm"]),
        "bias": st.sampled_from(["", "table", "slopes"]),
    }
)


@settings(max_examples=20, deadline=None)
@given(parts=NETS, heads=st.integers(1, 4), half=st.integers(2, 4), seed=st.integers(0, 99))
def test_attention_of_any_kind(parts: dict[str, str], heads: int, half: int, seed: int) -> None:
    shrunk_somehow(Attention(heads, 2 * half, 2 * half, **parts), seed=seed)
