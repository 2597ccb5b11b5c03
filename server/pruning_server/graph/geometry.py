"""How convolutions slide over their inputs, and the windows that they see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Geometry:
    """How a convolution's kernel slides; one number per spatial axis.

    Attributes:
        padding: zeros (before, after) each spatial axis.
    """

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool


def geometry_of(op: str, given: Mapping[str, Any], kernel: torch.Tensor) -> Geometry:
    """What the arguments of a convolution, by name, say."""
    space = kernel.dim() - 2
    dilation = _per_axis(given.get("dilation", 1), space)
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        totals = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        pairs = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pairs = tuple((one, one) for one in _per_axis(padding, space))
    return Geometry(
        stride=_per_axis(given.get("stride", 1), space),
        padding=pairs,
        dilation=dilation,
        groups=int(given.get("groups", 1)),
        transposed=bool(given.get("transposed", False)) or "transpose" in op,
    )


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    numbers = [int(one) for one in value] if isinstance(value, list | tuple) else [int(value)]
    return tuple(numbers if len(numbers) == axes else numbers * axes)


def _channel_axis(tensor: torch.Tensor, geometry: Geometry | None) -> int:
    return tensor.dim() - 1 - (len(geometry.stride) if geometry else 0)


def channels_of(tensor: torch.Tensor, geometry: Geometry | None) -> int:
    """How many channels an input or output has."""
    return tensor.shape[_channel_axis(tensor, geometry)]


def by_channel(tensor: torch.Tensor, geometry: Geometry | None) -> torch.Tensor:
    """[channels, positions]."""
    return tensor.movedim(_channel_axis(tensor, geometry), 0).flatten(1)


def unfolded(
    value: torch.Tensor, kernel: torch.Tensor, geometry: Geometry, positions: torch.Tensor | None
) -> torch.Tensor:
    """The windows of an input: [groups, positions, features]; `positions`: which of them, None: all."""
    space = len(geometry.stride)
    batched = value if value.dim() == space + 2 else value.unsqueeze(0)
    pads = [one for pair in reversed(geometry.padding) for one in pair]
    windows = torch.nn.functional.pad(batched, pads)
    for axis, (size, stride, dilation) in enumerate(
        zip(kernel.shape[2:], geometry.stride, geometry.dilation, strict=True)
    ):
        windows = windows.unfold(2 + axis, dilation * (size - 1) + 1, stride)
        windows = windows[..., ::dilation]
    # [N, in, *out space, *kernel] -> [N, *out space, in, *kernel]
    windows = windows.movedim(1, 1 + space)
    place = windows.shape[: 1 + space]
    if positions is None:
        flat = windows.reshape(-1, *windows.shape[1 + space :])
    else:
        flat = windows[torch.unravel_index(positions.to(value.device), place)]
    channels = flat.shape[1]
    grouped = flat.reshape(len(flat), geometry.groups, channels // geometry.groups, *flat.shape[2:])
    return grouped.flatten(2).movedim(1, 0)
