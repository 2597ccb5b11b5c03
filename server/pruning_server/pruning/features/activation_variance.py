"""The variance of the activations; Polyak, Wolf 2015, IEEE Access 3:2163-2175."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import ActivationFeature, Activations


def _compute(activations: Activations) -> torch.Tensor:
    return activations.covariance.diagonal().clamp(min=0)


FEATURE = ActivationFeature("activation_variance", _compute)
