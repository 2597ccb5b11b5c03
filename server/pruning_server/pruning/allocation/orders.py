"""Orders that go by the criterion's scores alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch

from pruning_server.pruning.ranking import ascending

Step: TypeAlias = tuple[int, int]
"""A group's number and one of its channels."""


def order_globally(scores: Mapping[int, torch.Tensor]) -> list[Step]:
    """Scores compete: the lowest of all first, of equal ones the first."""
    steps = _steps(scores)
    return [steps[position] for position in _by_score(scores).tolist()]


def order_per_layer(scores: Mapping[int, torch.Tensor]) -> list[Step]:
    """After any number of steps every group has lost the same fraction, but for rounding to whole channels."""
    steps, by_score = _steps(scores), _by_score(scores)
    # A channel's turn is the fraction of its group that is gone when half of it is: rounded to whole channels, every
    # group loses the same fraction then. Where that ties, scores decide.
    met = dict.fromkeys(scores, 0)
    turns = torch.empty(len(steps), dtype=torch.float64)
    for place, position in enumerate(by_score.tolist()):
        number, _ = steps[position]
        turns[place] = (met[number] + 0.5) / len(scores[number])
        met[number] += 1
    return [steps[position] for position in by_score[ascending(turns)].tolist()]


def _steps(scores: Mapping[int, torch.Tensor]) -> list[Step]:
    return [(number, channel) for number, one in scores.items() for channel in range(len(one))]


def _by_score(scores: Mapping[int, torch.Tensor]) -> torch.Tensor:
    return ascending(torch.cat([one.double() for one in scores.values()]))
