"""The layer's place among the layers of the model, from 0."""

from __future__ import annotations

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> float:
    return float(layer.index)


FEATURE = LayerFeature("index", _compute)
