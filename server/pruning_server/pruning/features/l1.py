"""The sum of magnitudes; Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv:1608.08710."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import SliceFeature


def _compute(slices: torch.Tensor) -> torch.Tensor:
    return slices.abs().sum(dim=1)


FEATURE = SliceFeature("l1", _compute)
