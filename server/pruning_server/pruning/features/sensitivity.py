"""The loss of the metric when half of the layer goes; Li et al. 2017, arXiv:1608.08710, section 3.2."""

from __future__ import annotations

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> float:
    return layer.sensitivity()


FEATURE = LayerFeature("sensitivity", _compute)
