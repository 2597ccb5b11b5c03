"""Applies masks and holds the removed weights at zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.pruning.values import Mask


def apply(tensors: Mapping[str, torch.Tensor], masks: Mapping[str, Mask]) -> None:
    """Sets every removed element to exactly 0, in place, whatever it was (also NaN).

    Args:
        tensors: the stored tensors themselves, by weight name; aliases see the change, since memory is shared.
        masks: by weight name.

    Raises:
        KeyError: a mask without its tensor.
        ValueError: a mask of another shape than its tensor.
    """
    MaskHolder(tensors, masks).hold()


def count_violations(tensors: Mapping[str, torch.Tensor], masks: Mapping[str, Mask]) -> dict[str, int]:
    """Number of removed elements that are not exactly 0, per weight that has any; empty where all is well.

    Raises:
        KeyError: a mask without its tensor.
        ValueError: a mask of another shape than its tensor.
    """
    found = {}
    for name, mask in masks.items():
        _check_shape(tensors[name], mask)
        wrong = int((tensors[name].detach().cpu()[mask.removed.cpu()] != 0).sum().item())
        if wrong:
            found[name] = wrong
    return found


class MaskHolder:
    """Sets removed elements back to exactly 0 after each optimizer step.

    Momentum, weight decay and adaptive rates may move them in a step; nothing of it outlives `hold`. Filling instead of
    multiplying keeps a NaN gradient from turning a removed weight into NaN.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], masks: Mapping[str, Mask]) -> None:
        for name, mask in masks.items():
            _check_shape(tensors[name], mask)
        self._pairs = tuple(
            (tensors[name], mask.removed.to(tensors[name].device)) for name, mask in masks.items() if mask.removed.any()
        )

    def hold(self) -> None:
        """Call after every step; in place and exact."""
        with torch.no_grad():
            for tensor, removed in self._pairs:
                tensor.masked_fill_(removed, 0.0)


def _check_shape(tensor: torch.Tensor, mask: Mask) -> None:
    if tensor.shape != mask.removed.shape:
        raise ValueError(f"{mask.name}: the mask has shape {tuple(mask.removed.shape)}, not {tuple(tensor.shape)}")
