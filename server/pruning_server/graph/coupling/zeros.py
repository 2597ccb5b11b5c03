"""Which ops give zero where a channel is zero: what is switched off where it is made must stay off on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruning_server.graph.coupling.rules.elementwise import RULES as ELEMENTWISE
from pruning_server.graph.coupling.values import Labelled, Maps, tensors_in

# Each value from the same place of the first tensor, with f(0) = 0.
_ALWAYS = """
    relu relu6 leaky_relu elu selu celu gelu silu mish tanh hardswish hardtanh softshrink hardshrink rrelu
    abs absolute neg negative positive expm1 log1p sqrt square erf erfinv sin tan asin atan sinh asinh atanh sign sgn
    floor ceil round trunc fix frac sinc deg2rad rad2deg nan_to_num mul multiply prelu _prelu_kernel
    dropout feature_dropout native_dropout copy
    contiguous detach clone alias lift_fresh to type_as _to_copy cpu cuda requires_grad zero zeros_like
    view _unsafe_view reshape view_as reshape_as permute transpose t numpy_T adjoint mT matrix_H mH movedim moveaxis
    swapaxes swapdims flatten unflatten ravel squeeze unsqueeze slice narrow select unbind expand expand_as broadcast_to
    chunk unsafe_chunk split unsafe_split split_with_sizes unsafe_split_with_sizes tensor_split cat concat stack
    flip repeat tile repeat_interleave pixel_shuffle pixel_unshuffle channel_shuffle
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d _convolution convolution
    linear addmm matmul mm bmm mv dot baddbmm einsum scaled_dot_product_attention
    _native_multi_head_attention _transformer_encoder_layer_fwd
    batch_norm instance_norm native_batch_norm group_norm layer_norm rms_norm
    max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d max_pool2d avg_pool2d adaptive_avg_pool2d
    adaptive_max_pool2d max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d
    upsample_nearest1d upsample_linear1d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_nearest3d
    upsample_trilinear3d gather take_along_dim index index_select roll tril triu glu grid_sampler im2col col2im
    max_unpool2d max_unpool3d tensordot inner outer mean sum var std amax amin norm cumsum size
"""
# These read nothing of a tensor that removing channels would change.
_PROPERTIES = "prim::dtype prim::device prim::is_nested prim::requires_grad prim::is_cuda prim::is_cpu prim::layout"
_QUESTIONS = "aten::dim aten::is_floating_point aten::is_complex aten::is_contiguous"
_READS = frozenset(_PROPERTIES.split()) | frozenset(_QUESTIONS.split())
_KEEPS = frozenset(f"aten::{name}" for name in _ALWAYS.split()) | {"prim::data", *_READS}
_DIVISIONS = frozenset({"aten::div", "aten::divide", "aten::true_divide", "aten::floor_divide"})
_SUMS = frozenset({"aten::add", "aten::sub", "aten::subtract"})
_PRODUCT_SUMS = frozenset({"aten::addmm", "aten::baddbmm"})
_LINEAR = frozenset({"aten::linear"})
_CONVOLUTIONS = frozenset(
    f"aten::{name}"
    for name in [
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "_convolution",
        "convolution",
    ]
)
_OVER_LAST = frozenset({"aten::layer_norm"})
_PER_CHANNEL = frozenset(f"aten::{name}" for name in ["batch_norm", "instance_norm", "native_batch_norm", "group_norm"])
_BIASED = _LINEAR | _CONVOLUTIONS | _OVER_LAST | _PER_CHANNEL


def keeps_zeros(op: str, inputs: Sequence[Any]) -> bool:
    """Whether channels that are zero in every labelled input are zero in the results, or are gone from them."""
    op = _plain(op)
    if op in _DIVISIONS:
        return not (isinstance(inputs[1], Labelled) and inputs[1].maps)
    if op in _SUMS:
        tensors = list(tensors_in(list(inputs[:2])))
        return len(tensors) == 2 and all(one.maps for one in tensors)
    return op in _KEEPS


def shifted_maps(op: str, arguments: Mapping[str, Any], result: Labelled) -> Maps:
    """The labels of a result to whose zeros something is added that these labels do not switch off."""
    op, dims = _plain(op), len(result.shape)
    if op in _SUMS:
        addends = [_covered(value, dims) for value in list(arguments.values())[:2]]
    elif op in _PRODUCT_SUMS:
        addends = [_covered(next(iter(arguments.values())), dims)]
    elif op in _BIASED:
        addends = _biases(op, arguments, dims)
    else:
        return ()
    return tuple(one for one in result.maps if not all(set(one.axes) <= covered for covered in addends))


def _biases(op: str, arguments: Mapping[str, Any], dims: int) -> list[set[int]]:
    """The axis on which each vector that the op adds lies; none for one over the axes of a layer norm."""
    vectors = [arguments.get(name) for name in ("bias", "running_mean")]
    axis = 1
    if op in _CONVOLUTIONS:
        axis = dims - len(arguments["weight"].shape) + 1
    elif op in _LINEAR:
        axis = dims - 1
    found = [value for value in vectors if isinstance(value, Labelled)]
    return [{axis} if value.maps and op not in _OVER_LAST else set() for value in found]


def _covered(value: Any, dims: int) -> set[int]:
    """The axes of a result of so many on which an operand has labels."""
    if not isinstance(value, Labelled):
        return set()
    return {axis + dims - len(value.shape) for one in value.maps for axis in one.axes}


def _plain(op: str) -> str:
    return op[:-1] if op.endswith("_") and not op.endswith("__") else op


def bends(op: str) -> bool:
    """Whether the op computes each value from those at the same place."""
    return op in ELEMENTWISE or op.rstrip("_") in ELEMENTWISE
