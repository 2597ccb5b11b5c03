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
    logaddexp logaddexp2 float_power arctan2 ldexp nextafter complex polar bitwise_left_shift bitwise_right_shift
    __lshift__ __rshift__ gcd lcm special_xlog1py special_xlogy
"""

_ONE = """
    relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh softplus softshrink
    hardshrink threshold log_sigmoid logit abs absolute neg negative positive exp exp2 expm1 log log2
    log10 log1p sqrt rsqrt square reciprocal erf erfc erfinv sin cos tan asin acos atan sinh cosh asinh acosh atanh sign
    sgn floor ceil round trunc fix frac sinc deg2rad rad2deg nan_to_num logical_not bitwise_not isnan isinf isfinite
    contiguous detach clone alias lift_fresh to type_as _to_copy cpu cuda
    requires_grad zero fill zeros_like ones_like full_like empty_like
    fake_quantize_per_tensor_affine
    arccos arccosh arcsin arcsinh arctan arctanh i0 lgamma digamma signbit isneginf isposinf isreal
    special_expit special_erf special_erfc special_erfinv special_exp2 special_expm1 special_log1p special_round
    special_sinc special_i0 special_i0e special_i1 special_i1e special_ndtr special_log_ndtr special_ndtri
    special_digamma special_gammaln special_logit special_psi special_entr
    conj _conj conj_physical _conj_physical resolve_conj resolve_neg real imag angle
    pin_memory _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short
    _autocast_to_full_precision _autocast_to_reduced_precision
"""

_DROPS = "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout rrelu"


def several(call: Call) -> list[Any]:
    """Every tensor takes part."""
    if isinstance(call.results[0], list):  # `where` with a condition alone
        call.freeze(list(call.arguments.values()), "its elements are counted")
        return list(call.results)
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


def drops(call: Call) -> list[Any]:
    """Nothing happens at inference, unless it is told to draw there too: then a narrower value gets other draws."""
    rate = call.arguments.get("p")
    if (call.arguments.get("train") or call.arguments.get("training")) and (rate is None or rate > 0):
        call.freeze(call.first(), "it draws at random at inference too, and would draw otherwise for fewer channels")
    return first_only(call)


RULES: Mapping[str, Rule] = {
    **named(_SEVERAL, several),
    **named(_ONE, first_only),
    **named(_DROPS, drops),
    **named("prelu _prelu_kernel", per_channel_slope),
    "prim::data": first_only,
}
