"""The average percentage of zeros, as a share; Hu, Peng, Tai, Tang 2016, arXiv:1607.03250."""

from __future__ import annotations

import torch

from pruning_server.pruning.features.base import ActivationFeature, Activations


def _compute(activations: Activations) -> torch.Tensor:
    return activations.zeros / activations.count


FEATURE = ActivationFeature("apoz", _compute)
