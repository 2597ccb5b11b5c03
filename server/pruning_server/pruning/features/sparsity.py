"""The share of the layer's weights that are 0 already."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import Layer, LayerFeature


def _compute(layer: Layer) -> float:
    return 1 - int(torch.count_nonzero(layer.tensor)) / max(1, layer.tensor.numel())


FEATURE = LayerFeature("sparsity", _compute)
