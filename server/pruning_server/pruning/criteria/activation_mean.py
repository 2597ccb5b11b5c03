"""How large a channel's values are, in the mean over samples and places."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pruning_server.pruning.criteria import signals
from pruning_server.pruning.criteria.base import CHANNELS_ONLY, Basis, Criterion, Needs, Scored

SAMPLES = 256


def _score_channels(scored: Scored, basis: Basis) -> Mapping[int, torch.Tensor]:
    seen = signals.mean_by_channel(scored, basis, lambda values: values.double().abs(), samples=SAMPLES)
    return {
        number: torch.stack([mean / usual if bool(usual > 0) else mean for mean, usual in by_kernel.values()]).mean(
            dim=0
        )
        for number, by_kernel in seen.items()
    }


CRITERION = Criterion(
    name="activation_mean",
    summary="channels only: the mean magnitude of what the next layers take in; quiet channels go first",
    source="Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv:1611.06440 (mean activation)",
    formula="mean of |a| over samples and places / the layer's mean, mean over the layers that take it in",
    needs=Needs.ACTIVATIONS,
    score_channels=_score_channels,
    granularities=CHANNELS_ONLY,
    unscored=signals.UNSCORED,
)
