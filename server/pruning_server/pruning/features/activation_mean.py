"""The mean activation; Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv:1611.06440 (as a criterion)."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import ActivationFeature, Activations


def _compute(activations: Activations) -> torch.Tensor:
    return activations.mean


FEATURE = ActivationFeature("activation_mean", _compute)
