"""The mean of the layer's weights."""

from __future__ import annotations

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> float:
    return float(layer.tensor.detach().double().mean())


FEATURE = LayerFeature("layer_mean", _compute)
