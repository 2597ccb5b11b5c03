"""Chance, seeded: the baseline that any other criterion has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.pruning.criteria.base import Basis, Criterion, Scored
from pruning_server.pruning.scoring import seed_of


def _score(weight: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(weight.shape, generator=generator, dtype=torch.float64)


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    # One draw per channel: sums of many draws would hardly differ in groups of large slices, and their channels would stay.
    found = {}
    for number, (first, *_) in scored.items():
        own_seed = seed_of(f"{first.tensor}:{first.axis}:{first.coordinates[0][0]}", basis.seed)
        found[number] = _score(torch.empty(len(first.coordinates)), own_seed)
    return found


CRITERION = Criterion(
    name="random",
    summary="uniformly random, from the request's seed: a baseline for the others",
    source="Liu, Sun, Zhou, Huang, Darrell 2019, arXiv:1810.05270 (random choice as a baseline)",
    formula="uniform on [0, 1), one draw per weight or channel",
    score=_score,
    score_channels=_score_channels,
)
