"""The weight's magnitude; Han, Pool, Tran, Dally 2015, arXiv:1506.02626."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import Layer, WeightFeature


def _compute(layer: Layer) -> torch.Tensor:
    return layer.tensor.detach().double().abs()


FEATURE = WeightFeature("abs_weight", _compute)
