"""The Euclidean norm; He, Kang, Dong, Fu, Yang 2018, arXiv:1808.06866."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import SliceFeature


def _compute(slices: torch.Tensor) -> torch.Tensor:
    return slices.square().sum(dim=1).sqrt()


FEATURE = SliceFeature("l2", _compute)
