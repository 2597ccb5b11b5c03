"""What decides which weights go. One file per strategy and one line in the registry here."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Protocol

from pruning_server.errors import NotImplementedFeatureError
from pruning_server.pruning import criteria
from pruning_server.pruning.strategies import static
from pruning_server.pruning.strategies.static_structure import plan_structure
from pruning_server.pruning.values import CriterionInfo, PruningPlan, ScoredInput, StrategyInfo
from pruning_server.spec.request import StaticStrategy, Target

__all__ = ["WeightStrategy", "catalogue", "get", "plan_structure"]


class WeightStrategy(Protocol):
    """Plans which weights are removed."""

    def plan(self, weights: Sequence[ScoredInput], config: StaticStrategy, target: Target, seed: int) -> PruningPlan:
        """Pure: reads the tensors, returns masks."""
        ...


_REGISTRY: MappingProxyType[str, WeightStrategy] = MappingProxyType({static.NAME: static.StaticPruning()})

# What the API names and this version does not do.
_PLANNED = MappingProxyType(
    {
        "dynamic": "over the model's life: while fine-tuning, on new data, and at inference",
        "conditional": "a condition decides, per weight, channel or layer",
    }
)


def get(name: str) -> WeightStrategy:
    """The strategy of that name.

    Raises:
        NotImplementedFeatureError: this version does not have it.
    """
    if name not in _REGISTRY:
        raise NotImplementedFeatureError(f"the strategy {name}")
    return _REGISTRY[name]


def catalogue() -> tuple[StrategyInfo, ...]:
    """Every strategy of the API, with what this version has of it."""
    infos = tuple(
        CriterionInfo(name=one.name, summary=one.summary, source=one.source)
        for one in (criteria.get(name) for name in criteria.names())
    )
    available = StrategyInfo(
        name=static.NAME,
        summary=static.SUMMARY,
        available=True,
        granularities=static.GRANULARITIES,
        targets=static.TARGETS,
        criteria=infos,
    )
    planned = (StrategyInfo(name=name, summary=summary, available=False) for name, summary in _PLANNED.items())
    return (available, *planned)
