"""The learned scale of the normalization after a layer: what is scaled by little passes on little."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.pruning.criteria.base import CHANNELS_ONLY, Basis, Criterion, Scored
from pruning_server.pruning.criteria.elements import sum_elements
from pruning_server.pruning.criteria.magnitude import widened


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    return sum_elements(scored, basis, lambda scale, _: widened(scale).abs())


CRITERION = Criterion(
    name="bn_scale",
    summary="channels only: the scale of the normalization on them; small scales go first",
    source="Liu, Li, Shen, Huang, Yan, Zhang 2017, arXiv:1708.06519",
    formula="sum of |gamma| over the channel's normalizations / the layer's mean",
    score_channels=_score_channels,
    granularities=CHANNELS_ONLY,
    of_scales=True,
    unscored=(
        "no normalization with a learned scale goes with these channels, which the criterion bn_scale needs (a frozen"
        " archive has none left); choose another criterion, such as l1"
    ),
)
