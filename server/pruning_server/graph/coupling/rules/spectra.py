"""Fourier transforms and complex numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pruning_server.graph.coupling.calls import Call, Rule, axis_list
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import AxisMap, squeezed, tensors_in

_OVER = "a transform goes over this axis"


def over_one(call: Call) -> list[Any]:
    """Transforms over `dim`."""
    value = call["self"]
    return [call.result(call.held(value, [int(call["dim"])], _OVER))]


def over_several(call: Call) -> list[Any]:
    """Transforms over the axes in `dim`: all, or the last ones, where it names none."""
    value = call["self"]
    dims, lengths = len(value.shape), call["s"]
    axes = list(range(dims - len(lengths), dims)) if lengths and not call["dim"] else axis_list(call["dim"], dims)
    return [call.result(call.held(value, axes, _OVER))]


def short_time(call: Call) -> list[Any]:
    """`stft`, `istft`: everything stays."""
    call.freeze(list(tensors_in(list(call.arguments.values()))), "windows of a signal are transformed")
    return [call.result(())]


def as_pairs(call: Call) -> list[Any]:
    """`view_as_real`: a new last axis for the real and the imaginary part."""
    return [call.result(tuple(AxisMap(one.ids[..., None]) for one in call["self"].maps))]


def from_pairs(call: Call) -> list[Any]:
    """`view_as_complex`: the inverse."""
    value = call["self"]
    maps = call.held(value, [-1], "it holds the real and the imaginary part")
    return [call.result(squeezed(maps, [len(value.shape) - 1]))]


RULES: Mapping[str, Rule] = {
    **named("fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft", over_one),
    **named(
        "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift",
        over_several,
    ),
    **named("stft istft", short_time),
    **named("view_as_real", as_pairs),
    **named("view_as_complex", from_pairs),
}
