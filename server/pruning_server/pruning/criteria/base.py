"""What a criterion is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Score = Callable[[torch.Tensor, int], torch.Tensor]
ChannelScore = Callable[[Sequence[torch.Tensor], int], torch.Tensor]


@dataclass(frozen=True)
class Criterion:
    """Scores every element of a weight; the lowest scores are removed first.

    Attributes:
        name: as in requests.
        summary: one line for people.
        source: authors, year, arXiv or venue.
        score: (weight, seed) -> scores of the same shape, finite, not negative, float32 or float64. The seed is the
            weight's own; most criteria do not use it.
        score_channels: (slices, seed) -> a score per channel, finite, not negative, comparable between groups, for
            criteria whose score of a channel is not the sum over its elements. `slices` are the coupled weights that take
            part, [channels, elements] each; the seed is the group's own. None: the sum, relative to the layer's mean.
    """

    name: str
    summary: str
    source: str
    score: Score
    score_channels: ChannelScore | None = None
