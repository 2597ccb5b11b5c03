"""What each op does to a stored tensor that reaches it. One table per behaviour; an op in none of them freezes.

Keys are op kinds as in the graph, without overload: `aten::add` stands for `add.Tensor` and `add.Scalar`. In-place
forms (`aten::add_`) are looked up without the underscore where they have no line of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pruning_server.graph.values import WeightKind


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


VIEWS = _aten(
    """
    t numpy_T matrix_H mT mH adjoint transpose permute movedim moveaxis swapaxes swapdims reshape view view_as
    reshape_as flatten unflatten squeeze unsqueeze expand expand_as broadcast_to narrow select slice split
    split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk tensor_split hsplit vsplit dsplit unbind
    diagonal contiguous detach alias lift_fresh ravel unfold real resolve_conj resolve_neg atleast_1d atleast_2d
    atleast_3d to type_as float double half bfloat16 cpu cuda _unwrap_optional broadcast_tensors
    """
) | {"prim::unchecked_cast", "prim::unchecked_unwrap_optional", "prim::data"}
"""The result's elements are the first argument's, perhaps on its memory."""

COPIES = _aten(
    """
    _to_copy repeat tile repeat_interleave flip fliplr flipud roll rot90 tril triu diag diag_embed pad
    constant_pad_nd neg abs square sqrt relu tanh sin sign sgn round trunc floor erf sinh tan asin atan
    positive clone dropout feature_dropout alpha_dropout
    fake_quantize_per_tensor_affine fake_quantize_per_channel_affine _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_learnable_per_channel_affine fused_moving_avg_obs_fake_quant _weight_norm _weight_norm_interface
    """
)
"""The result's elements are the first argument's, or 0 where those are 0, on new memory."""

JOINS = _aten("cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag meshgrid")
"""The result holds the elements of every tensor in its list."""

GATHERS = _aten("index index_select gather take take_along_dim")
"""Rows picked by an index: an embedding where the index depends on the input, else a copy."""

MULTIPLICATIONS = _aten("mul multiply")
"""Element-wise products; 0 stays 0 in either factor."""

DIVISIONS = _aten("div divide true_divide")
"""Element-wise quotients; 0 stays 0 in the numerator only."""

ADDITIONS = _aten("add sub subtract rsub")
"""Element-wise sums."""

READS = _aten(
    """
    size dim ndimension numel stride storage_offset is_contiguous is_floating_point is_complex is_cuda is_nonzero item
    len result_type can_cast promote_types get_device device __is__ __isnot__ __not__ eq ne lt le gt ge isnan isinf
    isfinite any all equal allclose isclose argmax argmin argsort count_nonzero nonzero
    norm norm_except_dim linalg_vector_norm linalg_matrix_norm linalg_norm frobenius_norm nuclear_norm sum mean std var
    std_mean var_mean nanmean nansum max min amax amin aminmax median logsumexp trace
    zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full
    new_tensor Bool Int Float IntImplicit FloatImplicit ScalarImplicit format warn str
    """
) | {
    "prim::dtype",
    "prim::device",
    "prim::layout",
    "prim::shape",
    "prim::is_cuda",
    "prim::is_cpu",
    "prim::is_nested",
    "prim::is_sparse",
    "prim::is_quantized",
    "prim::is_meta",
    "prim::requires_grad",
    "prim::isinstance",
    "prim::min",
    "prim::max",
    "prim::Print",
    "prim::RaiseException",
    "prim::tolist",
    "prim::NumToTensor",
    "prim::type",
}
"""Sizes, types, statistics and comparisons: what they give is not the tensor, and any value of it is allowed."""

RESCALES_IN_PLACE = _aten("embedding_renorm_")
"""Written by the model, but zeros stay zeros."""

_CONV_WEIGHT_BIAS = {1: WeightKind.CONV, 2: WeightKind.BIAS}
_NATIVE_CONV = {1: WeightKind.CONV, 3: WeightKind.BIAS}

BY_POSITION: Mapping[str, Mapping[int, WeightKind]] = {
    **dict.fromkeys(
        _aten(
            """
            conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d _convolution convolution
            convolution_overrideable _convolution_mode conv_tbc mkldnn_convolution miopen_convolution
            miopen_depthwise_convolution cudnn_convolution cudnn_convolution_transpose cudnn_convolution_relu
            """
        ),
        _CONV_WEIGHT_BIAS,
    ),
    **dict.fromkeys(
        _aten(
            """
            thnn_conv2d _slow_conv2d_forward slow_conv3d slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d
            slow_conv_transpose3d _conv_depthwise2d conv_depthwise3d
            """
        ),
        _NATIVE_CONV,
    ),
    "aten::linear": {1: WeightKind.LINEAR, 2: WeightKind.BIAS},
    "aten::mkldnn_linear": {1: WeightKind.LINEAR, 2: WeightKind.BIAS},
    "aten::bilinear": {2: WeightKind.LINEAR, 3: WeightKind.BIAS},
    "aten::embedding": {0: WeightKind.EMBEDDING},
    "aten::embedding_bag": {0: WeightKind.EMBEDDING},
    "aten::_embedding_bag": {0: WeightKind.EMBEDDING},
    "aten::embedding_renorm_": {0: WeightKind.EMBEDDING},
}
"""Ops whose weights stand at fixed positions."""

_NORM_NAMES = {"weight": WeightKind.NORM, "bias": WeightKind.NORM, "gamma": WeightKind.NORM, "beta": WeightKind.NORM}
_CELL_NAMES = {
    "w_ih": WeightKind.RECURRENT,
    "w_hh": WeightKind.RECURRENT,
    "b_ih": WeightKind.BIAS,
    "b_hh": WeightKind.BIAS,
}
_ATTENTION_NAMES = {
    "qkv_weight": WeightKind.LINEAR,
    "qkv_bias": WeightKind.BIAS,
    "proj_weight": WeightKind.LINEAR,
    "proj_bias": WeightKind.BIAS,
    "norm_weight_1": WeightKind.NORM,
    "norm_bias_1": WeightKind.NORM,
    "norm_weight_2": WeightKind.NORM,
    "norm_bias_2": WeightKind.NORM,
    "ffn_weight_1": WeightKind.LINEAR,
    "ffn_bias_1": WeightKind.BIAS,
    "ffn_weight_2": WeightKind.LINEAR,
    "ffn_bias_2": WeightKind.BIAS,
}

BY_NAME: Mapping[str, Mapping[str, WeightKind]] = {
    **dict.fromkeys(
        _aten(
            """
            batch_norm instance_norm layer_norm group_norm rms_norm native_batch_norm native_layer_norm
            native_group_norm _batch_norm_impl_index _native_batch_norm_legit cudnn_batch_norm miopen_batch_norm
            """
        ),
        _NORM_NAMES,
    ),
    **dict.fromkeys(_aten("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _thnn_fused_lstm_cell"), _CELL_NAMES),
    **dict.fromkeys(_aten("_native_multi_head_attention _transformer_encoder_layer_fwd"), _ATTENTION_NAMES),
    "aten::_weight_norm": {"g": WeightKind.NORM},
    "aten::_weight_norm_interface": {"g": WeightKind.NORM},
}
"""Ops whose weights stand under names of the schema."""

RECURRENT_LISTS = _aten("lstm gru rnn_tanh rnn_relu")
"""Ops that take all their weights in a list named `params`: matrices are recurrent kernels, vectors biases."""

SCALE_NAMES = frozenset({"weight", "gamma", "g", "norm_weight_1", "norm_weight_2"})
"""Of the arguments that are `NORM`s, those that multiply."""

STATISTIC_NAMES = frozenset({"running_mean", "running_var"})
"""Arguments of normalizations that are neither weights nor input."""

PRODUCTS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(
        _aten("mm matmul bmm mv dot inner vdot outer ger tensordot linalg_matmul _int_mm __matmul__ kron"), (0, 1)
    ),
    **dict.fromkeys(_aten("addmm addmv addbmm baddbmm addr"), (1, 2)),
}
"""Ops in which either factor may be the weight: the one that is stored, where the other depends on the input."""

LIST_PRODUCTS: Mapping[str, int] = {"aten::einsum": 1, "aten::linalg_multi_dot": 0, "aten::chain_matmul": 0}
"""The same for factors in a list, at this position."""


def is_known(op: str, *tables: Iterable[str]) -> bool:
    """Whether the op, or its out-of-place form, stands in one of the tables."""
    return any(op in table or base_name(op) in table for table in tables)


def base_name(op: str) -> str:
    """The op without the underscore of its in-place form."""
    return op[:-1] if op.endswith("_") and not op.endswith("__") else op
