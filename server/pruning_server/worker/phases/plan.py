"""PLAN and PRUNE: which weights go, and their removal."""

from __future__ import annotations

from dataclasses import dataclass

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.modules import get_tensor
from pruning_server.pruning import masks as masking
from pruning_server.pruning import strategies
from pruning_server.pruning.values import PruningPlan
from pruning_server.spec.request import PruningSpec, StaticStrategy
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.story import Story


@dataclass(frozen=True)
class Pruned:
    """The plan that was carried out on `Loaded.subject`."""

    plan: PruningPlan


def make_plan(spec: PruningSpec, loaded: Loaded, observed: Observed) -> PruningPlan:
    """Asks the strategy.

    Raises:
        JobFailureError: nothing would be left, or nothing can be pruned; the message says what to change.
    """
    if not isinstance(spec.strategy, StaticStrategy) or spec.target is None:
        raise JobFailureError(Reason.NOT_IMPLEMENTED, "This version prunes by the static strategy and a target.")
    strategy = strategies.get("static")
    return strategy.plan(observed.selection.inputs(loaded.subject), spec.strategy, spec.target, spec.seed)


def prune(plan: PruningPlan, loaded: Loaded, story: Story) -> Pruned:
    """Writes the zeros."""
    masking.apply({name: get_tensor(loaded.subject, name) for name in plan.masks}, plan.masks)
    story.count(parameters_processed=plan.prunable_weights, parameters_removed=plan.removed_weights)
    for note in plan.notes:
        story.note(note)
    return Pruned(plan)
