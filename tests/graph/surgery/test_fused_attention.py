"""Torch's own attention and encoder layers lose heads and dimensions: fused ops are written out, exactly."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import cutting, shrinking, zoo
from pruning_server.graph.structure import Structure, analyse

SEQUENCE = torch.rand(3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PADDING = torch.tensor([[False, False, True, True], [False] * 4, [False, True, False, True]])


class Attended(nn.Module):
    """Attention over itself, between two layers."""

    def __init__(self, heads: int = 2, *, batch_first: bool = True, need_weights: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, heads, batch_first=batch_first, dropout=0.1)
        self.last = nn.Linear(8, 3)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.attention(x, x, x, need_weights=self.need_weights)[0])


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("later", torch.ones(4, 4, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=padding)[0]


class Causal(Padded):
    def forward(self, x: Tensor, padding: Tensor) -> Tensor:  # noqa: ARG002 - the others need it
        return self.attention(x, x, x, attn_mask=self.later)[0]


class Both(Padded):
    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=padding, attn_mask=self.later)[0]


class Crossed(nn.Module):
    """Attention over something else, of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=5, vdim=6)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x[:, :3, :5], x[:, :3, :6])[0]


class Encoder(nn.Module):
    """One layer."""

    def __init__(self, activation: str = "relu", *, norm_first: bool = False) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 5, batch_first=True, norm_first=norm_first, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Stack(nn.Module):
    """An encoder and a decoder of one layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Transformer(8, 2, 1, 1, 6, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x, y)


class Fused(nn.Module):
    """The op itself, with everything that it can give."""

    def __init__(self, heads: int, *, need_weights: bool, average: bool) -> None:
        super().__init__()
        self.heads, self.need_weights, self.average = heads, need_weights, average
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = torch._native_multi_head_attention(
            x, other, x, 8, self.heads, self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias,
            None, self.need_weights, self.average,
        )  # fmt: skip
        return self.last(y), weights


def archived(net: nn.Module, inputs: Sequence[Tensor], *, scripted: bool) -> torch.jit.ScriptModule:
    cutting.randomize(net, seed=3)
    with torch.no_grad():  # else torch does not take its fast path
        return zoo.scripted(net.eval()) if scripted else zoo.traced(net, *inputs)


def shrunk_somehow(
    archive: torch.jit.ScriptModule, inputs: Sequence[Tensor], *, head_dims: bool, counted: bool = False
) -> tuple[Structure, Any, Any]:
    """What can go, and the archive without half of it next to the masked original; `counted`: its cost is what was said."""
    runs = [inputs, [one[:2] for one in inputs]]
    structure = analyse(zoo.reload(archive), {"forward": runs}, batch_size=3, head_dims=head_dims)
    assert not structure.failed_rules
    removal = shrinking.draw(structure, 0)
    smaller, cut = shrinking.shrunk(archive, structure, removal)
    if counted:
        again = analyse(zoo.reload(smaller), {"forward": runs}, batch_size=3, head_dims=head_dims)
        assert again.cost({}) == structure.cost(removal)
    return structure, smaller, shrinking.mask(archive, cut)


def assert_same(smaller: Any, masked: Any, inputs: Sequence[Tensor], *, grad: bool = False) -> None:
    """Equal outputs; with gradients enabled scripted attention takes its other path."""
    with torch.enable_grad() if grad else torch.no_grad(), torch.jit.optimized_execution(False):
        one, other = (shrinking.tensors_of(model(*inputs)) for model in (smaller, masked))
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def kinds(structure: Structure, place: tuple[str, int]) -> list[tuple[str, int]]:
    """Kind and size of every group that holds a place."""
    return [
        (group.kind, group.size)
        for group in structure.groups
        if any((one.tensor, one.axis) == place for one in group.members)
    ]


@pytest.mark.parametrize(
    ("batch_first", "need_weights", "head_dims"),
    [(False, True, False), (False, False, True), (True, True, True), (True, False, False), (True, True, False)],
)
def test_scripted_attention_shrinks_on_all_its_paths(batch_first: bool, need_weights: bool, head_dims: bool) -> None:
    archive = archived(Attended(batch_first=batch_first, need_weights=need_weights), [SEQUENCE], scripted=True)
    structure, smaller, masked = shrunk_somehow(archive, [SEQUENCE], head_dims=head_dims)
    assert kinds(structure, ("attention.in_proj_weight", 0)) == [("channel", 4) if head_dims else ("head", 2)]
    assert kinds(structure, ("attention.in_proj_weight", 1)) == [("channel", 8)]
    assert kinds(structure, ("attention.out_proj.weight", 0)) == [("channel", 8)]
    for grad in (False, True):
        assert_same(smaller, masked, [SEQUENCE], grad=grad)
        assert_same(smaller, masked, [SEQUENCE[:1, :3]], grad=grad)
    with torch.no_grad():
        assert smaller.train()(SEQUENCE).shape == masked.train()(SEQUENCE).shape


@pytest.mark.parametrize("head_dims", [False, True])
@pytest.mark.parametrize("net", [Padded, Causal, Both])
def test_masks_of_fused_attention(net: type[nn.Module], head_dims: bool) -> None:
    archive = archived(net(), [SEQUENCE, PADDING], scripted=True)
    structure, smaller, masked = shrunk_somehow(archive, [SEQUENCE, PADDING], head_dims=head_dims)
    assert kinds(structure, ("attention.in_proj_weight", 0))
    for grad in (False, True):
        assert_same(smaller, masked, [SEQUENCE, PADDING], grad=grad)
        assert_same(smaller, masked, [SEQUENCE[:2], PADDING.flip(0)[:2]], grad=grad)


@pytest.mark.parametrize("head_dims", [False, True])
def test_scripted_attention_over_something_else(head_dims: bool) -> None:
    archive = archived(Crossed(), [SEQUENCE], scripted=True)
    structure, smaller, masked = shrunk_somehow(archive, [SEQUENCE], head_dims=head_dims)
    assert kinds(structure, ("attention.q_proj_weight", 0)) == [("channel", 4) if head_dims else ("head", 2)]
    assert_same(smaller, masked, [SEQUENCE])


@pytest.mark.parametrize("head_dims", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("need_weights", [False, True])
def test_a_fused_op_is_written_out(need_weights: bool, heads: int, head_dims: bool) -> None:
    class First(Fused):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            y, _ = torch._native_multi_head_attention(
                x, other, x, 8, self.heads, self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias,
                None, self.need_weights, self.average,
            )  # fmt: skip
            return self.last(y)

    inputs = [SEQUENCE, SEQUENCE.flip(1)]
    archive = archived(First(heads, need_weights=need_weights, average=True), inputs, scripted=False)
    structure, smaller, masked = shrunk_somehow(archive, inputs, head_dims=head_dims, counted=True)
    found = kinds(structure, ("qkv.weight", 0))
    if head_dims and heads < 4:
        # Queries and keys lose their dimensions, values theirs; of the first pair one stays, so that something does.
        assert found == [("channel", 8 // heads - 1), ("channel", 8 // heads)]
    else:
        assert found == ([("head", heads)] if heads > 1 else [])
    assert_same(smaller, masked, inputs)
    assert ("_native_multi" in str(smaller.inlined_graph)) == (heads == 1 and not head_dims and not structure.groups)


@pytest.mark.parametrize("average", [False, True])
def test_weights_that_are_used_keep_the_heads(average: bool) -> None:
    net = Fused(2, need_weights=True, average=average)
    archive = archived(net, [SEQUENCE, SEQUENCE], scripted=False)
    structure, smaller, masked = shrunk_somehow(archive, [SEQUENCE, SEQUENCE], head_dims=False)
    assert kinds(structure, ("qkv.weight", 0)) == []
    assert any("averaged" in one.reason or "output" in one.reason for one in structure.frozen)
    assert_same(smaller, masked, [SEQUENCE, SEQUENCE])
    # Dimensions inside heads change no weight of attention.
    structure, smaller, masked = shrunk_somehow(archive, [SEQUENCE, SEQUENCE], head_dims=True)
    assert [kind for kind, _ in kinds(structure, ("qkv.weight", 0))] == ["channel", "channel"]
    assert_same(smaller, masked, [SEQUENCE, SEQUENCE])


@pytest.mark.parametrize(
    ("activation", "norm_first", "scripted", "head_dims"),
    [
        ("relu", False, False, False),
        ("gelu", True, False, True),
        ("gelu", False, False, True),
        ("relu", True, True, True),
        ("gelu", False, True, False),
    ],
)
def test_an_encoder_layer_shrinks(activation: str, norm_first: bool, scripted: bool, head_dims: bool) -> None:
    archive = archived(Encoder(activation, norm_first=norm_first), [SEQUENCE], scripted=scripted)
    structure, smaller, masked = shrunk_somehow(archive, [SEQUENCE], head_dims=head_dims, counted=not scripted)
    assert "_transformer_encoder_layer_fwd" in str(archive.inlined_graph)
    assert "_transformer_encoder_layer_fwd" not in str(smaller.inlined_graph)
    assert kinds(structure, ("layer.linear1.weight", 0)) == [("channel", 5)]
    found = kinds(structure, ("layer.self_attn.in_proj_weight", 0))
    if not head_dims:
        assert found == [("head", 2)]
    elif scripted:  # the code for training reads one number of dimensions
        assert found == [("channel", 4)]
    else:
        assert found == [("channel", 3), ("channel", 4)]
    for grad in (False, True) if scripted else (False,):
        assert_same(smaller, masked, [SEQUENCE], grad=grad)
        assert_same(smaller, masked, [SEQUENCE[:2]], grad=grad)


def test_an_encoder_layer_that_loses_only_its_hidden_axis_stays_fused() -> None:
    archive = archived(Encoder(), [SEQUENCE], scripted=False)
    structure = analyse(zoo.reload(archive), {"forward": [[SEQUENCE]]})
    number = next(n for n, group in enumerate(structure.groups) if group.size == 5)
    smaller, cut = shrinking.shrunk(archive, structure, {number: [1, 3]})
    assert "_transformer_encoder_layer_fwd" in str(smaller.inlined_graph)
    assert_same(smaller, shrinking.mask(archive, cut), [SEQUENCE])


def test_a_stack_of_layers_with_a_decoder() -> None:
    net = Stack()
    inputs = [SEQUENCE, SEQUENCE.flip(1)[:, :3]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch scripts its own norms so
        archive = archived(net, inputs, scripted=True)
    structure, smaller, masked = shrunk_somehow(archive, inputs, head_dims=True)
    places = ["encoder.layers.0.self_attn", "decoder.layers.0.self_attn", "decoder.layers.0.multihead_attn"]
    assert all(kinds(structure, (f"net.{place}.in_proj_weight", 0)) for place in places)
    assert_same(smaller, masked, inputs)


def test_what_takes_the_place_of_a_fused_layer_has_gradients() -> None:
    archive = archived(Encoder(), [SEQUENCE], scripted=False)
    _, smaller, _ = shrunk_somehow(archive, [SEQUENCE], head_dims=True)
    smaller(SEQUENCE).square().sum().backward()
    assert all(one.grad is not None and bool(one.grad.abs().sum() > 0) for one in smaller.parameters())
