"""What features that compare channels with kept ones share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.pruning.features.base import Relate, Relation


def correlations(covariance: torch.Tensor) -> torch.Tensor:
    """Absolute correlations [channels, channels]; NaN with a channel that does not vary, and with itself."""
    # A product of matrices need not be symmetric to the last bit, and of two twins each must be as like the other.
    covariance = (covariance + covariance.T) / 2
    deviations = covariance.diagonal().clamp(min=0).sqrt()
    # Rounding leaves a constant channel a little variance.
    deviations = torch.where(deviations > 1e-9 * deviations.max(), deviations, torch.nan)
    found = (covariance / torch.outer(deviations, deviations)).abs().clamp(max=1.0)
    return found.fill_diagonal_(torch.nan)


def largest_with_kept(members: Sequence[torch.Tensor]) -> Relate:
    """Relates each channel to the kept channel that it is most like, by the member in which the two are least alike.

    Args:
        members: [channels, channels] likeness in [0, 1] per member of the group; NaN where there is none.
    """
    together = members[0]
    for one in members[1:]:
        together = torch.minimum(together, one)
    together = together.nan_to_num(nan=-1.0)

    def relate(kept: torch.Tensor) -> Relation:
        if not bool(kept.any()):
            nothing = torch.full((len(kept),), torch.nan, dtype=torch.float64)
            return Relation(nothing, None)
        values, partners = together.masked_fill(~kept, -1.0).max(dim=1)
        return Relation(torch.where(values >= 0, values, torch.nan), partners)

    return relate
