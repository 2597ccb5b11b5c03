"""Criterion `auto`: plans with each criterion, and the one whose plan does best on *select*."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from msgspec import structs

from pruning_server.errors import JobFailureError, Reason
from pruning_server.pruning import criteria
from pruning_server.pruning.criteria.auto import choose
from pruning_server.pruning.evidence import Evidence, SampleScores
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.request import StaticStrategy

Plan = TypeVar("Plan", bound=PruningPlan | StructuralPlan)


def keep_best(config: StaticStrategy, evidence: Evidence | None, make: Callable[[StaticStrategy], Plan]) -> Plan:
    """The plan of the best criterion; its notes say which that is and what each got.

    Args:
        config: the request's; its criterion is replaced by each candidate for its granularity.
        evidence: what tries the plans.
        make: plans by one criterion.

    Raises:
        JobFailureError: as `make` does with the first candidate, where no candidate gives a plan.
    """
    if evidence is None:
        raise JobFailureError(Reason.INTERNAL, "The criterion auto was asked without data; please report this.")

    def judge(plan: Plan) -> SampleScores:
        removed = plan.removal if isinstance(plan, StructuralPlan) else plan.masks
        return evidence.trial(removed, part="select", renormalize=True)

    choice = choose(
        criteria.candidates(config.granularity), lambda name: make(structs.replace(config, criterion=name)), judge
    )
    return replace(choice.plan, notes=(choice.note, *choice.plan.notes), choice=choice.report)
