"""The weight itself."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import Layer, WeightFeature


def _compute(layer: Layer) -> torch.Tensor:
    return layer.tensor.detach().double()


FEATURE = WeightFeature("weight", _compute)
