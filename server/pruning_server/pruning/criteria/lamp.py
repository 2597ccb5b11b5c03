"""The squared magnitude relative to all that is at least as large in its layer: global choice without layer-wise tuning."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.pruning.criteria.base import Basis, Criterion, Scored
from pruning_server.pruning.criteria.elements import by_layer, sum_elements
from pruning_server.pruning.criteria.l2 import squared
from pruning_server.pruning.criteria.magnitude import widened
from pruning_server.pruning.ranking import ascending


def _score(weight: torch.Tensor, _: int) -> torch.Tensor:
    magnitudes = widened(weight).double().abs().cpu()
    largest = magnitudes.max() if magnitudes.numel() else torch.zeros(())
    # Relative to the largest, so that no square of a float64 overflows.
    squares = (magnitudes / largest).square() if bool(largest > 0) else magnitudes
    return _share_of_the_larger(squares.reshape(-1)).reshape(weight.shape)


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    return by_layer(sum_elements(scored, basis, squared), scored, _share_of_the_larger)


def _share_of_the_larger(values: torch.Tensor) -> torch.Tensor:
    """Each value divided by the sum of itself and of all that come after it in ascending order; 0 stays 0."""
    order = ascending(values)
    tails = values[order].flip(0).cumsum(0).flip(0)
    shares = torch.empty_like(values)
    shares[order] = torch.where(tails > 0, values[order] / tails.clamp(min=torch.finfo(values.dtype).tiny), 0.0)
    return shares


CRITERION = Criterion(
    name="lamp",
    summary="the squared magnitude as a share of all larger ones in its layer: layers compete without emptying one",
    source="Lee, Park, Mo, Ahn, Shin 2021, arXiv:2010.07611",
    formula="w^2 / sum of v^2 over the layer's weights v from w upwards; of a channel the same of its l2",
    score=_score,
    score_channels=_score_channels,
)
