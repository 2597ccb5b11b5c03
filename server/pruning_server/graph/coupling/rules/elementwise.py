"""Ops that compute every element from the elements at the same place, with broadcasting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, Labelled, tensors_in

_SEVERAL = """
    add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow maximum minimum fmax fmin
    atan2 hypot lerp addcmul addcdiv where masked_fill copy
    lt le gt ge eq ne less less_equal greater greater_equal not_equal
    logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__ isclose
    clamp clamp_min clamp_max clip copysign xlogy sigmoid_backward heaviside
"""

_ONE = """
    relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh softplus softshrink
    hardshrink threshold rrelu log_sigmoid logit abs absolute neg negative positive exp exp2 expm1 log log2
    log10 log1p sqrt rsqrt square reciprocal erf erfc erfinv sin cos tan asin acos atan sinh cosh asinh acosh atanh sign
    sgn floor ceil round trunc fix frac sinc deg2rad rad2deg nan_to_num logical_not bitwise_not isnan isinf isfinite
    dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout bernoulli
    contiguous detach clone alias lift_fresh to type_as _to_copy cpu cuda
    requires_grad zero fill zeros_like ones_like full_like empty_like rand_like randn_like
    fake_quantize_per_tensor_affine
"""


def several(call: Call) -> list[Any]:
    """Every tensor takes part."""
    return call.alike(call.elementwise(list(tensors_in(list(call.arguments.values()))), call.results[0].shape))


def first_only(call: Call) -> list[Any]:
    """The first tensor's labels; others only lend their type or device."""
    value = call.first()
    return call.alike(value.maps if isinstance(value, Labelled) else ())


def per_channel_slope(call: Call) -> list[Any]:
    """`prelu`: one slope for all, or one per coordinate of axis 1."""
    value, slope = call["self"], call["weight"]
    after = max(len(value.shape) - 2, 0)
    maps = tuple(AxisMap(one.ids.reshape(-1, *[1] * after)) for one in slope.maps)
    shape = (*slope.shape, *[1] * after)
    return call.alike(call.combine([(value.maps, value.shape), (maps, shape)], value.shape))


RULES: Mapping[str, Rule] = {
    **named(_SEVERAL, several),
    **named(_ONE, first_only),
    **named("prelu _prelu_kernel", per_channel_slope),
    "prim::data": first_only,
}
