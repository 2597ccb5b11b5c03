"""The distance to all other filters of the layer: filters near their geometric median can be replaced by the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from pruning_server.pruning.criteria.base import CHANNELS_ONLY, Basis, Criterion, Scored
from pruning_server.pruning.criteria.elements import producers, sum_lines

# Differences one by one keep equal filters at distance 0; by products of matrices it takes a fraction of the time.
_EXACT_OPERATIONS = 1 << 31
_BLOCK_ROWS = 512


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    # A filter is what makes the channel: how the channel is used afterwards does not make it redundant.
    makers = {number: producers(members) for number, members in scored.items()}

    def lines(name: str, axes: Collection[int]) -> Mapping[int, torch.Tensor]:
        return {axis: _distances(basis.tensors(name), axis) for axis in axes}

    return sum_lines(makers, lines)


def _distances(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """The sum of Euclidean distances of each coordinate's slice to all others on the axis."""
    rows = tensor.detach().movedim(axis, 0).flatten(1) if tensor.dim() > 1 else tensor.detach().reshape(-1, 1)
    rows = rows.cpu().double()
    largest = rows.abs().max() if rows.numel() else torch.zeros(())
    if not bool(largest > 0):
        return torch.zeros(len(rows), dtype=torch.float64)
    scaled = rows / largest  # no square overflows
    exact = len(rows) * rows.numel() <= _EXACT_OPERATIONS
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    parts = [torch.cdist(part, scaled, compute_mode=mode).sum(dim=1) for part in scaled.split(_BLOCK_ROWS)]
    return torch.cat(parts) * largest


CRITERION = Criterion(
    name="fpgm",
    summary="channels only: the sum of the filter's distances to the layer's other filters; the most replaceable go first",
    source="He, Liu, Wang, Hu, Yang 2019, arXiv:1811.00250",
    formula="sum over the layer's filters j of ||F_i - F_j||_2, over all weights that make the channel / the layer's mean",
    score_channels=_score_channels,
    granularities=CHANNELS_ONLY,
)
