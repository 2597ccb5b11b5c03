"""What the layer is: conv, linear, embedding or recurrent."""

from __future__ import annotations

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> str:
    return layer.kind


FEATURE = LayerFeature("kind", _compute)
