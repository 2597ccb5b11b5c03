"""Ops that take patches or points of a space: channels go on, the space stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pruning_server.graph.coupling.calls import Call, Rule
from pruning_server.graph.coupling.registry import named
from pruning_server.graph.coupling.values import Maps, single

_SPACE = "points or patches are taken along it"


def sample(call: Call) -> list[Any]:
    """`grid_sampler`: [N, C, ..] at [N, .., 2 or 3] gives [N, C, ..]."""
    value, grid = call["input"], call["grid"]
    call.freeze(grid, "it says where to sample")
    return [call.result(call.held(value, [0, *range(2, len(value.shape))], _SPACE))]


def make_grid(call: Call) -> list[Any]:
    """`affine_grid_generator`: only the number of samples and the lengths of space count, not that of channels."""
    call.freeze(call["theta"], "it says where to sample")
    return [call.result(())]


def to_columns(call: Call) -> list[Any]:
    """`im2col`: [.., C, H, W] to [.., C * kernel, positions]."""
    value = call["self"]
    dims = len(value.shape)
    maps = call.held(value, [dims - 2, dims - 1], _SPACE)
    line = call.line(value, dims - 3, "patches of it are laid out in rows")
    rest = call.uncovered(maps, dims - 3)
    out: Maps = tuple(type(one)(np.squeeze(one.ids, dims - 1)) for one in rest)
    if line is not None:
        size = int(call.results[0].shape[dims - 3])
        out += single(np.repeat(line, size // len(line)), dims - 3, dims - 1)
    return [call.result(out)]


def from_columns(call: Call) -> list[Any]:
    """`col2im`: the inverse, overlapping patches are summed; all rows of a channel go together."""
    value = call["self"]
    dims = len(value.shape)
    maps = call.held(value, [dims - 1], _SPACE)
    line = call.line(value, dims - 2, "patches of it are laid out in rows")
    rest = call.uncovered(maps, dims - 2)
    out: Maps = tuple(type(one)(np.expand_dims(one.ids, dims)) for one in rest)
    if line is not None:
        rows = line.reshape(int(call.results[0].shape[dims - 2]), -1)
        call.channels.unite_along(rows, 1, call.cause("all points of a patch belong to one channel"))
        out += single(rows[:, 0], dims - 2, dims + 1)
    return [call.result(out)]


def unpool(call: Call) -> list[Any]:
    """`max_unpool2d`, `max_unpool3d`: the value and the places that it came from lie side by side."""
    value, places = call["self"], call["indices"]
    count = 3 if "3d" in call.op else 2
    dims = len(value.shape)
    held = [(call.held(one, range(dims - count, dims), _SPACE), one.shape) for one in (value, places)]
    shape = value.shape[: dims - count] + (1,) * count
    return [call.result(call.combine([(maps, shape) for maps, _ in held], shape))]


def interpolate(call: Call) -> list[Any]:
    """`__interpolate` and its kin of older archives: [N, C, ..]."""
    value = call.first()
    return [call.result(call.held(value, range(2, len(value.shape)), _SPACE))]


RULES: Mapping[str, Rule] = {
    **named("grid_sampler grid_sampler_2d grid_sampler_3d", sample),
    **named("affine_grid_generator", make_grid),
    **named("im2col", to_columns),
    **named("col2im", from_columns),
    **named("max_unpool2d max_unpool3d", unpool),
    **named("__interpolate __upsample __upsample_nearest __upsample_bilinear", interpolate),
}
