"""Ops by what they do to the numbers and shapes that they take, for the tracer."""

from __future__ import annotations

# A size that reaches these as a shape adapts by itself, or is adapted by surgery.
_SHAPE_OPS = """
    view _unsafe_view reshape expand unflatten split_with_sizes unsafe_split_with_sizes zeros ones full empty
    new_zeros new_ones new_full new_empty broadcast_to slice narrow
"""
SHAPED = frozenset(f"aten::{name}" for name in _SHAPE_OPS.split())
# After these a tensor that other values share has other axes than its labels say.
RELAYS = frozenset(
    f"aten::{name}_" for name in ("t", "transpose", "swapaxes", "swapdims", "squeeze", "unsqueeze", "resize", "set")
)
# On lists these take numbers as places or counts, not as content.
COUNTING = frozenset(
    f"aten::{name}"
    for name in ["__getitem__", "select", "slice", "mul", "pop", "Delete", "insert", "_set_item", "get", "setdefault"]
)
STORING = frozenset({"aten::insert", "aten::_set_item", "aten::setdefault"})
# These compare or print the numbers in a list; the others change the list by them, which no edit can make right.
READING = frozenset({"aten::__contains__", "aten::format"})
ORDERING = frozenset({"aten::sort", "aten::remove"})
# A constant comes out of these as another one where there are more positions; zero stays zero.
_COUNTED_OPS = """
    sum nansum cumsum prod cumprod logsumexp logcumsumexp norm linalg_norm linalg_vector_norm frobenius_norm
    count_nonzero pad constant_pad_nd avg_pool1d avg_pool2d avg_pool3d col2im
"""
COUNTED = frozenset(f"aten::{name}" for name in _COUNTED_OPS.split())
# Of these a tensor only lends its shape or type, or says which elements are taken.
_SELECTING_OPS = """
    index index_select gather take_along_dim embedding view_as reshape_as expand_as type_as to
"""
SELECTING = frozenset(f"aten::{name}" for name in _SELECTING_OPS.split())
# Nested tensors have no shape that a rule could read; these rules need none.
ON_NESTED = frozenset({"aten::_transformer_encoder_layer_fwd"})
# Zero lengths switch the weight off; zeros in what is divided by its own norm would make it 0 / 0.
NORMED = frozenset({"aten::_weight_norm", "aten::_weight_norm_interface"})
