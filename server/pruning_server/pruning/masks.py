"""Applies masks and holds the removed weights at zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.pruning.values import Mask


def apply(tensors: Mapping[str, torch.Tensor], masks: Mapping[str, Mask]) -> None:
    """Sets every removed element to exactly 0, in place."""
    raise NotImplementedError


def count_violations(tensors: Mapping[str, torch.Tensor], masks: Mapping[str, Mask]) -> dict[str, int]:
    """Number of removed elements that are not exactly 0, per weight that has any."""
    raise NotImplementedError


class MaskHolder:
    """Sets removed elements back to exactly 0 after each optimizer step."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], masks: Mapping[str, Mask]) -> None:
        raise NotImplementedError

    def hold(self) -> None:
        """Call after every step, in place, exact whatever momentum and weight decay did."""
        raise NotImplementedError
