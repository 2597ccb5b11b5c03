"""What removal changes in the loss to first order, squared, over batches of the caller's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pruning_server.pruning.criteria import slopes
from pruning_server.pruning.criteria.base import Basis, Criterion, Needs, Scored

SAMPLES = 512
BATCH_SIZE = 16


def _score_weights(names: Sequence[str], basis: Basis) -> Mapping[str, torch.Tensor]:
    return slopes.mean_squares(names, basis, samples=SAMPLES, batch_size=BATCH_SIZE)


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    return slopes.mean_squares_of_channels(scored, basis, samples=SAMPLES, batch_size=BATCH_SIZE)


CRITERION = Criterion(
    name="taylor",
    summary="the squared change of the loss to first order, over batches of samples",
    source="Molchanov, Mallya, Tyree, Frosio, Kautz 2019, arXiv:1906.10771",
    formula=(
        f"mean over batches of {BATCH_SIZE} of (w g)^2; of a channel of (sum of w g over the weights that take it in)^2"
    ),
    needs=Needs.GRADIENTS,
    score_weights=_score_weights,
    score_channels=_score_channels,
    unscored=slopes.UNSCORED,
)
