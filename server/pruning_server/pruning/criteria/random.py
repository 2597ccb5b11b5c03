"""Chance, seeded: the baseline that any other criterion has to beat."""

from __future__ import annotations

import torch

from pruning_server.pruning.criteria.base import Criterion


def _score(weight: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(weight.shape, generator=generator, dtype=torch.float64)


CRITERION = Criterion(
    name="random",
    summary="uniformly random, from the request's seed: a baseline for the others",
    source="Liu, Sun, Zhou, Huang, Darrell 2019, arXiv:1810.05270 (random choice as a baseline)",
    score=_score,
)
