"""Static pruning: one plan, after training."""

from __future__ import annotations

from pruning_server.errors import JobFailureError, Reason
from pruning_server.pruning import strategies
from pruning_server.pruning.strategies.static_structure import plan_structure
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.request import StaticStrategy
from pruning_server.worker.planning.context import Planning


def plan(context: Planning, strategy: StaticStrategy) -> PruningPlan | StructuralPlan:
    """Masks, or the channels to remove.

    Raises:
        JobFailureError: see `strategies.static` and `strategies.static_structure`.
    """
    spec, observed, subject = context.spec, context.observed, context.loaded.subject
    if observed.channels is None:
        weights = observed.selection.inputs(subject)
        return strategies.get("static").plan(
            weights,
            strategy,
            spec.target,
            spec.seed,
            context.evidence,
            nonzero_parameters=observed.parameters.nonzero,
        )
    if spec.target is None:
        raise JobFailureError(Reason.NOT_IMPLEMENTED, "Static pruning needs a target.")
    inputs = observed.channels.inputs(subject, observed.selection.weights)
    return plan_structure(
        inputs, strategy, spec.target, spec.seed, exclude_layers=spec.exclude_layers, evidence=context.evidence
    )
