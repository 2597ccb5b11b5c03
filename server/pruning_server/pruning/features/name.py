"""The layer's path in the model."""

from __future__ import annotations

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> str:
    return layer.path


FEATURE = LayerFeature("name", _compute)
