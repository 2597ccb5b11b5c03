"""Chance, seeded: the baseline that any other criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.pruning.criteria.base import Criterion


def _score(weight: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(weight.shape, generator=generator, dtype=torch.float64)


def _score_channels(slices: Sequence[torch.Tensor], seed: int) -> torch.Tensor:
    # One draw per channel: sums of many draws would hardly differ in groups of large slices, and their channels would stay.
    return _score(torch.empty(len(slices[0])), seed)


CRITERION = Criterion(
    name="random",
    summary="uniformly random, from the request's seed: a baseline for the others",
    source="Liu, Sun, Zhou, Huang, Darrell 2019, arXiv:1810.05270 (random choice as a baseline)",
    score=_score,
    score_channels=_score_channels,
)
