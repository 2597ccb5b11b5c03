"""How often a channel is active: one that is 0 for most samples has little to say."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.pruning.criteria import signals
from pruning_server.pruning.criteria.base import CHANNELS_ONLY, Basis, Criterion, Needs, Scored

SAMPLES = 256


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    seen = signals.mean_by_channel(scored, basis, lambda values: values != 0, samples=SAMPLES)
    return {
        number: torch.stack([share for share, _ in by_kernel.values()]).mean(dim=0)
        for number, by_kernel in seen.items()
    }


CRITERION = Criterion(
    name="apoz",
    summary="channels only: the share of values that are not 0, of what the next layers take in; it needs units like ReLU",
    source="Hu, Peng, Tai, Tang 2016, arXiv:1607.03250",
    formula="1 - the share of zeros among the channel's values, mean over the layers that take it in",
    needs=Needs.ACTIVATIONS,
    score_channels=_score_channels,
    granularities=CHANNELS_ONLY,
    unscored=signals.UNSCORED,
)
