"""Correlation of what consumers take of two channels; Suau, Zappella, Apostoloff 2018, arXiv:1807.10585."""

from __future__ import annotations

from collections.abc import Sequence

from pruning_server.pruning.features.base import ActivationRelation, Activations, Relate
from pruning_server.pruning.features.relations import correlations, largest_with_kept


def _prepare(members: Sequence[Activations]) -> Relate:
    return largest_with_kept([correlations(one.covariance) for one in members])


FEATURE = ActivationRelation("activation_correlation", _prepare)
