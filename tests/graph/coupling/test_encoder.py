"""Torch's own transformer layers, fused or written out: hidden axes and whole heads are free."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from helpers import cutting, zoo
from helpers.rebuilding import archived, assert_rebuilt, coupled, free
from pruning_server.graph.coupling.tracer import Tracer

SEQUENCE = torch.rand(3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def fused(archive: torch.jit.ScriptModule, x: Tensor) -> set[str]:
    """The fused ops that a run meets."""
    tracer = Tracer(archive)
    tracer.trace("forward", [x])
    return {visit.op for visit in tracer.visits if "encoder_layer_fwd" in visit.op or "native_multi" in visit.op}


@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_the_feed_forward_axis_of_a_fused_layer_is_free(norm_first: bool, scripted: bool) -> None:
    def build(hidden: int) -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, hidden, batch_first=True, norm_first=norm_first)

    archive = archived(build(5), [SEQUENCE], scripted=scripted)
    assert "aten::_transformer_encoder_layer_fwd" in fused(archive, SEQUENCE)
    coupling = coupled(archive, [SEQUENCE])
    hidden = {("linear1.weight", 0), ("linear1.bias", 0), ("linear2.weight", 1)}
    heads = {("self_attn.in_proj_weight", 0), ("self_attn.in_proj_bias", 0), ("self_attn.out_proj.weight", 1)}
    assert free(coupling) == hidden | heads
    assert_rebuilt(build, 5, [SEQUENCE], ("linear1.weight", 0), size=5, share=1, scripted=scripted)


@pytest.mark.parametrize("scripted", [False, True], ids=["traced", "scripted"])
@torch.no_grad()
def test_nested_tensors_of_padded_sequences_have_no_labels(scripted: bool) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 5, batch_first=True), 2)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=padding)

    padding = torch.tensor([[False, False, True, True], [False] * 4, [False, False, False, True]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype
        archive = archived(Padded(), [SEQUENCE, padding], scripted=scripted)
        coupling = coupled(archive, [SEQUENCE, padding])
    # The scripted archive also holds the layer written out, whose ops cannot be followed on nested tensors.
    assert (("encoder.layers.0.linear1.weight", 0) in free(coupling)) is not scripted


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.attention(x, x, x, need_weights=False)[0])


@torch.no_grad()
def test_heads_and_widths_of_fused_attention_are_free() -> None:
    archive = archived(Attended(), [SEQUENCE], scripted=False)
    assert fused(archive, SEQUENCE) == {"aten::_native_multi_head_attention"}
    coupling = coupled(archive, [SEQUENCE])
    number, group = cutting.group_of(coupling, "attention.in_proj_weight", 0)
    assert (group.kind, group.size, len(group.members[0].coordinates[0])) == ("head", 2, 12)
    assert {("first.weight", 0), ("attention.out_proj.weight", 0), ("last.weight", 1)} <= free(coupling)
    masked, without = zoo.reload(archive), zoo.reload(archive)
    cutting.zero_consumers(masked, coupling, {number: [1]})
    for (name, axis), gone in cutting.coordinates(coupling, {number: [1]}).items():
        cutting.stored(without)[name].index_fill_(axis, torch.tensor(gone), 0.7)
    cutting.zero_consumers(without, coupling, {number: [1]})
    torch.testing.assert_close(without(SEQUENCE), masked(SEQUENCE), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("need_weights", [False, True])
def test_heads_of_attention_that_is_written_out(need_weights: bool) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x.flip(0), x * 2, need_weights=need_weights)[0]

    # A head less is not what torch's module can be built as: the masked net is compared with one whose head is zero.
    archive = archived(Written(), [SEQUENCE], scripted=False)
    coupling = coupled(archive, [SEQUENCE])
    number, group = cutting.group_of(coupling, "attention.in_proj_weight", 0)
    assert (group.size, len(group.members[0].coordinates[0])) == (2, 12)
    masked = zoo.reload(archive)
    cutting.zero_consumers(masked, coupling, {number: [1]})
    without = zoo.reload(archive)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for (name, axis), gone in cutting.coordinates(coupling, {number: [1]}).items():
            values = cutting.stored(without)[name]
            values.index_copy_(axis, torch.tensor(gone), torch.rand_like(values.index_select(axis, torch.tensor(gone))))
        cutting.zero_consumers(without, coupling, {number: [1]})
        torch.testing.assert_close(without(SEQUENCE), masked(SEQUENCE), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(archive(SEQUENCE), masked(SEQUENCE), rtol=1e-4, atol=1e-4)
