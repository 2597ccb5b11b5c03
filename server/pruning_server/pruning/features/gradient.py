"""The mean gradient of the loss; Mozer, Smolensky 1989, NIPS 1 (relevance by derivative)."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import Layer, WeightFeature


def _compute(layer: Layer) -> torch.Tensor:
    return layer.gradients().mean


FEATURE = WeightFeature("gradient", _compute)
