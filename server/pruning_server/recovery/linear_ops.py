"""Rows, kernels and results of linear ops in the layouts that least squares need."""

from __future__ import annotations

import torch
from torch.nn import functional

from pruning_server.graph.capture import LinearCall
from pruning_server.graph.geometry import Geometry

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def channel_rows(value: torch.Tensor, channel_axis: int, positions: torch.Tensor) -> torch.Tensor:
    """[positions, channels]: the value at chosen places, which are numbered over all other axes in order."""
    last = value.movedim(channel_axis, -1)
    place = torch.unravel_index(positions.to(value.device), last.shape[:-1])
    return last[place]


def kernel_rows(kernel: torch.Tensor, call: LinearCall) -> torch.Tensor:
    """[features, out]: a tensor shaped like the call's kernel, its features in the order of the design matrix."""
    return kernel.movedim(call.out_axis, 0).flatten(1).T


def grouped(rows: torch.Tensor, groups: int) -> torch.Tensor:
    """[rows, out] as [groups, rows, out of the group]."""
    return rows.reshape(len(rows), groups, -1).movedim(1, 0)


def ungrouped(rows: torch.Tensor) -> torch.Tensor:
    """[groups, rows, out of the group] as [rows, out]."""
    return rows.movedim(0, 1).flatten(1)


def to_kernel(solution: torch.Tensor, call: LinearCall) -> torch.Tensor:
    """[groups, features, out of the group] in the shape of the call's kernel."""
    flat = solution.movedim(2, 1).flatten(0, 1)
    moved = call.kernel.movedim(call.out_axis, 0)
    return flat.reshape(moved.shape).movedim(0, call.out_axis)


def per_output(values: torch.Tensor, call: LinearCall) -> torch.Tensor:
    """[out] in a shape that multiplies the call's kernel."""
    shape = [1] * call.kernel.dim()
    shape[call.out_axis] = -1
    return values.reshape(shape)


def run_linear(call: LinearCall, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What the op gives for the same input with another kernel and bias [out]."""
    if call.geometry is None:
        return functional.linear(call.inputs, kernel if call.out_axis == 0 else kernel.T, bias)
    return _convolve(call.inputs, kernel, bias, call.geometry)


def _convolve(value: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    convolution = _CONVOLUTIONS[len(geometry.stride)]
    padding = tuple(before for before, _ in geometry.padding)
    if any(before != after for before, after in geometry.padding):
        value = functional.pad(value, [one for pair in reversed(geometry.padding) for one in pair])
        padding = (0,) * len(padding)
    return convolution(value, kernel, bias, geometry.stride, padding, geometry.dilation, geometry.groups)
