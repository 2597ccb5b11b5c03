"""What decides which weights go. One file per strategy and one line in the registry here."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Protocol

from pruning_server.errors import NotImplementedFeatureError
from pruning_server.pruning import criteria, schedules
from pruning_server.pruning.evidence import Evidence
from pruning_server.pruning.strategies import conditional, dynamic, static
from pruning_server.pruning.strategies.static_structure import plan_structure
from pruning_server.pruning.values import CriterionInfo, PruningPlan, ScheduleInfo, ScoredInput, StrategyInfo
from pruning_server.spec.condition import FEATURES
from pruning_server.spec.request import StaticStrategy, Target

__all__ = ["WeightStrategy", "catalogue", "get", "plan_structure"]


class WeightStrategy(Protocol):
    """Plans which weights are removed."""

    def plan(
        self,
        weights: Sequence[ScoredInput],
        config: StaticStrategy,
        target: Target | None,
        seed: int,
        evidence: Evidence | None = None,
        *,
        nonzero_parameters: int | None = None,
    ) -> PruningPlan:
        """Reads the tensors and, where the criterion needs it, the evidence; returns masks."""
        ...


_REGISTRY: MappingProxyType[str, WeightStrategy] = MappingProxyType({static.NAME: static.StaticPruning()})


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
        CriterionInfo(
            name=one.name,
            summary=one.summary,
            source=one.source,
            granularities=one.granularities,
            needs=one.needs.value,
        )
        for one in (criteria.get(name) for name in criteria.names())
    )
    once = StrategyInfo(
        name=static.NAME,
        summary=static.SUMMARY,
        available=True,
        granularities=static.GRANULARITIES,
        targets=static.TARGETS,
        criteria=infos,
    )
    while_training = StrategyInfo(
        name=dynamic.NAME,
        summary=dynamic.SUMMARY,
        available=True,
        granularities=dynamic.GRANULARITIES,
        targets=dynamic.TARGETS,
        criteria=infos,
        schedules=tuple(
            ScheduleInfo(
                name=one.name, summary=one.summary, source=one.source, granularities=tuple(sorted(one.granularities))
            )
            for one in (schedules.get(name) for name in schedules.names())
        ),
    )
    where_it_holds = StrategyInfo(
        name=conditional.NAME,
        summary=conditional.SUMMARY,
        available=True,
        granularities=conditional.GRANULARITIES,
        targets=conditional.TARGETS,
        features=tuple(FEATURES.values()),
    )
    return (once, while_training, where_it_holds)
