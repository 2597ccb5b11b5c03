"""Dynamic pruning."""

from __future__ import annotations

from pruning_server.errors import JobFailureError, Reason
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.request import DynamicStrategy
from pruning_server.worker.planning.context import Planning


def plan(context: Planning, strategy: DynamicStrategy) -> PruningPlan | StructuralPlan:
    """Masks, or the channels to remove."""
    del context, strategy
    raise JobFailureError(Reason.NOT_IMPLEMENTED, "This version has no dynamic pruning.")
