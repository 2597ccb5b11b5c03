"""From a request to a plan: one file per strategy, each with `plan(context)`."""

from __future__ import annotations

from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.request import ConditionalStrategy, DynamicStrategy, StaticStrategy, TargetKind
from pruning_server.worker.planning import budget, conditional, dynamic, static
from pruning_server.worker.planning.context import Planning

__all__ = ["Planning", "make_plan"]


def make_plan(context: Planning) -> PruningPlan | StructuralPlan:
    """Asks the request's strategy.

    Raises:
        JobFailureError: nothing would be left, nothing can be pruned, or the target cannot be reached; the message says
            what to change.
    """
    match context.spec.strategy:
        case StaticStrategy() as strategy:
            target = context.spec.target
            if target is not None and target.kind is TargetKind.MAX_ACCURACY_DROP:
                return budget.plan(context, strategy, target.value)
            return static.plan(context, strategy)
        case ConditionalStrategy() as strategy:
            return conditional.plan(context, strategy)
        case DynamicStrategy() as strategy:
            return dynamic.plan(context, strategy)
