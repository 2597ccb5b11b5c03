"""Multiply-accumulates of the layer for one sample; no value where they cannot be counted."""

from __future__ import annotations

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> float:
    return float("nan") if layer.macs is None else float(layer.macs)


FEATURE = LayerFeature("macs", _compute)
