"""The layer's place as a share of the way through the model; 0 where there is only one."""

from __future__ import annotations

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> float:
    return layer.index / max(1, layer.count - 1)


FEATURE = LayerFeature("depth", _compute)
