"""The diagonal of the empirical Fisher information; Theis, Korshunova, Tejani, Huszar 2018, arXiv:1801.05787."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import Layer, WeightFeature


def _compute(layer: Layer) -> torch.Tensor:
    return layer.gradients().square


FEATURE = WeightFeature("fisher", _compute)
