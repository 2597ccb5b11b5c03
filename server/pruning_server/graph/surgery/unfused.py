"""Torch's fused attention and encoder layer written out with stock ops, for any number and width of heads.

The fused kernels demand as many projected rows as the embedding is wide, split evenly among the heads; what has lost heads or
dimensions can only be computed in steps. Both functions are compiled to TorchScript and put in the place of the fused op;
they compute what `native/transformers/attention.cpp` and `transformer.cpp` of torch 2.13 do.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pruning_server.graph import ir, ir_edits

_ATTENTION = "aten::_native_multi_head_attention"
_LAYER = "aten::_transformer_encoder_layer_fwd"

# What the functions below take of the fused op's arguments, by name.
_SHARED = ("qkv_weight", "qkv_bias", "proj_weight", "proj_bias", "mask", "mask_type")
_LAYER_ONLY = (
    "use_gelu",
    "norm_first",
    "eps",
    "norm_weight_1",
    "norm_bias_1",
    "norm_weight_2",
    "norm_bias_2",
    "ffn_weight_1",
    "ffn_bias_1",
    "ffn_weight_2",
    "ffn_bias_2",
)


def attend(  # noqa: PLR0913, PLR0917 - what the op takes
    query: Tensor,
    key: Tensor,
    value: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None,
    mask_type: int | None,
    need_weights: bool,
    average_attn_weights: bool,
    heads: int,
    width: int,
    made: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """[B, T, E] to [B, T, E'] and the weights: `heads` heads of `width` queries and keys and `made` values each."""
    batch, rows = query.size(0), heads * width
    sizes = [rows, rows, heads * made]
    if query is key and key is value:
        q, k, v = functional.linear(query, qkv_weight, qkv_bias).split_with_sizes(sizes, 2)
    else:
        weights, biases = qkv_weight.split_with_sizes(sizes, 0), qkv_bias.split_with_sizes(sizes, 0)
        q = functional.linear(query, weights[0], biases[0])
        k = functional.linear(key, weights[1], biases[1])
        v = functional.linear(value, weights[2], biases[2])
    q = q.view(batch, -1, heads, width).transpose(1, 2) * scale
    k = k.view(batch, -1, heads, width).transpose(1, 2)
    v = v.view(batch, -1, heads, made).transpose(1, 2)
    scores = torch.matmul(q, k.transpose(2, 3))
    if mask is not None:
        hidden = mask.to(torch.bool)
        if mask_type is not None and mask_type == 1:  # padding [B, T]
            hidden = hidden.unsqueeze(1).unsqueeze(1)
        scores = scores.masked_fill(hidden, -float("inf"))
    shares = torch.softmax(scores, -1)
    joined = torch.matmul(shares, v).transpose(1, 2).reshape(batch, -1, heads * made)
    if need_weights and average_attn_weights:
        shares = shares.sum(1) / heads
    return functional.linear(joined, proj_weight, proj_bias), shares


def encode(  # noqa: PLR0913, PLR0917 - what the op takes
    src: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None,
    mask_type: int | None,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    heads: int,
    width: int,
    made: int,
    scale: float,
) -> Tensor:
    """A transformer's encoder layer over [B, T, E]."""
    wide = [src.size(2)]
    x = src
    if norm_first:
        x = functional.layer_norm(x, wide, norm_weight_1, norm_bias_1, eps)
    x = attend(
        x, x, x, qkv_weight, qkv_bias, proj_weight, proj_bias, mask, mask_type, False, True, heads, width, made, scale
    )[0]
    x = x + src
    if not norm_first:
        x = functional.layer_norm(x, wide, norm_weight_1, norm_bias_1, eps)
    before = x
    if norm_first:
        x = functional.layer_norm(x, wide, norm_weight_2, norm_bias_2, eps)
    x = functional.linear(x, ffn_weight_1, ffn_bias_1)
    # The fused kernel for CUDA approximates.
    x = functional.gelu(x, approximate="tanh" if x.is_cuda else "none") if use_gelu else functional.relu(x)
    x = functional.linear(x, ffn_weight_2, ffn_bias_2) + before
    if not norm_first:
        x = functional.layer_norm(x, wide, norm_weight_2, norm_bias_2, eps)
    return x


@cache
def _compiled(op: str) -> Any:
    function: Any = torch.jit.script(attend if op == _ATTENTION else encode)
    return function.inlined_graph


def unfuse(graph: ir.Graph, node: ir.Node, heads: int, width: int, made: int, *, scale: float) -> None:
    """Puts stock ops in the place of a fused one, for what is left of its heads.

    Args:
        graph: that holds the node.
        node: goes.
        heads: how many there are.
        width: dimensions of queries and keys per head.
        made: dimensions of values per head.
        scale: factor of the products of queries and keys.
    """
    names = [argument.name for argument in ir.arguments_of(node)]
    given = dict(zip(names, node.inputs(), strict=True))
    inputs = ("query", "key", "value") if node.kind() == _ATTENTION else ("src",)
    others = ("need_weights", "average_attn_weights") if node.kind() == _ATTENTION else _LAYER_ONLY
    values = [given[name] for name in (*inputs, *_SHARED, *others)]
    values += [ir_edits.insert_constant(graph, node, number) for number in (heads, width, made, scale)]
    results = ir_edits.insert_graph(graph, node, _compiled(node.kind()), values)
    if node.kind() == _ATTENTION:
        results = ir_edits.insert_tuple_unpack(graph, node, results[0], 2)
    ir_edits.replace_results(node, results)
