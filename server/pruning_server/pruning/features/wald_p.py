"""Wald's test that a weight is zero, with the variance 1 / (samples * Fisher information) of each weight alone.

Wald 1943, Trans. Amer. Math. Soc. 54:426-482. Weights that the data says nothing of have p = 1, so that, other than with
`p_harm`, little data prunes more.
"""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import Layer, WeightFeature


def _compute(layer: Layer) -> torch.Tensor:
    gradients = layer.gradients()
    statistic = gradients.samples * gradients.square * layer.tensor.detach().double().square()
    return torch.erfc((statistic / 2).sqrt())


FEATURE = WeightFeature("wald_p", _compute)
