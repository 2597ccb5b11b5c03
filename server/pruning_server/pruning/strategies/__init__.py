"""One file per strategy and one line here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pruning_server.pruning.values import PruningPlan, ScoredInput
from pruning_server.spec.request import StaticStrategy, Target


class WeightStrategy(Protocol):
    """Plans which weights are removed."""

    def plan(
        self, weights: Sequence[ScoredInput], config: StaticStrategy, target: Target, seed: int
    ) -> PruningPlan:
        """Pure: reads the tensors, returns masks."""
        ...


def get(name: str) -> WeightStrategy:
    """The strategy of that name; NotImplementedFeatureError where this version has none."""
    raise NotImplementedError
