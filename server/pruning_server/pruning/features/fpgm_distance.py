"""The mean distance to the other channels: the closest to the geometric median is the most replaceable.

He, Liu, Wang, Hu, Yang 2019, arXiv:1811.00250; there the sum, here the mean, which does not grow with the layer's width.
"""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import SliceFeature


def _compute(slices: torch.Tensor) -> torch.Tensor:
    others = len(slices) - 1
    if others < 1:
        return torch.full((len(slices),), torch.nan, dtype=torch.float64)
    # Through differences: the usual shortcut through products loses small distances.
    distances = torch.cdist(slices, slices, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum(dim=1) / others


FEATURE = SliceFeature("fpgm_distance", _compute)
