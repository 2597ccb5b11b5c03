"""What removal changes in the loss to second order, with the Fisher information for the curvature, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pruning_server.pruning.criteria import slopes
from pruning_server.pruning.criteria.base import Basis, Criterion, Needs, Scored

SAMPLES = 128


def _score_weights(names: Sequence[str], basis: Basis) -> Mapping[str, torch.Tensor]:
    return {name: one / 2 for name, one in slopes.mean_squares(names, basis, samples=SAMPLES, batch_size=1).items()}


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    found = slopes.mean_squares_of_channels(scored, basis, samples=SAMPLES, batch_size=1)
    return {number: one / 2 for number, one in found.items()}


CRITERION = Criterion(
    name="fisher",
    summary="optimal brain damage with the Fisher information as curvature, sample by sample",
    source=(
        "LeCun, Denker, Solla 1990, Optimal brain damage, NIPS 2; for channels Theis, Korshunova, Tejani, Huszar 2018,"
        " arXiv:1801.05787"
    ),
    formula=(
        "w^2 / 2 * mean over samples of g^2; of a channel the mean over samples of (sum of w g over the weights that take it"
        " in)^2 / 2"
    ),
    needs=Needs.GRADIENTS,
    score_weights=_score_weights,
    score_channels=_score_channels,
    unscored=slopes.UNSCORED,
)
