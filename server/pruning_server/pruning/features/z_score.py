"""The weight's distance from its layer's mean, in its layer's standard deviations; none where all weights are equal."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import Layer, WeightFeature


def _compute(layer: Layer) -> torch.Tensor:
    weights = layer.tensor.detach().double()
    return (weights - weights.mean()) / weights.std(correction=0)


FEATURE = WeightFeature("z_score", _compute)
