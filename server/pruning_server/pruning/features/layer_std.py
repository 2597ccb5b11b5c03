"""The standard deviation of the layer's weights, as of a whole population."""

from __future__ import annotations

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> float:
    return float(layer.tensor.detach().double().std(correction=0))


FEATURE = LayerFeature("layer_std", _compute)
