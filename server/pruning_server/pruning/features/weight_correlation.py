"""Correlation of the weights that make two channels; Wang, Fu, Guo, Cai, He 2019, arXiv:1906.10337."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.pruning.features.base import Relate, SliceRelation
from pruning_server.pruning.features.relations import correlations, largest_with_kept


def _prepare(members: Sequence[torch.Tensor]) -> Relate:
    return largest_with_kept([correlations(_covariance(slices)) for slices in members])


def _covariance(slices: torch.Tensor) -> torch.Tensor:
    centered = slices - slices.mean(dim=1, keepdim=True)
    return centered @ centered.T / slices.shape[1]


FEATURE = SliceRelation("weight_correlation", _prepare)
