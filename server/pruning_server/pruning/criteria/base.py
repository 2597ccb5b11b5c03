"""What a criterion is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Score = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Criterion:
    """Scores every element of a weight; the lowest scores are removed first.

    Attributes:
        name: as in requests.
        summary: one line for people.
        source: authors, year, arXiv or venue.
        score: (weight, seed) -> scores of the same shape, finite, not negative, float32 or float64. The seed is the
            weight's own; most criteria do not use it.
    """

    name: str
    summary: str
    source: str
    score: Score
