"""PLAN and PRUNE: which weights go, and their removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.cost import count_parameters
from pruning_server.graph.modules import get_tensor
from pruning_server.graph.structure import Cut
from pruning_server.graph.training import thaw
from pruning_server.pruning import masks as masking
from pruning_server.pruning import strategies
from pruning_server.pruning.strategies.static_structure import plan_structure
from pruning_server.pruning.values import Mask, PruningPlan, StructuralPlan
from pruning_server.spec.request import PruningSpec, StaticStrategy
from pruning_server.worker.archives import ModelArchive
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.story import Story
from pruning_server.worker.structures import remove_channels, sample_runs


@dataclass(frozen=True)
class Pruned:
    """The model after the plan was carried out.

    Attributes:
        plan: which weights, or which channels, went.
        archive: where fresh copies of the pruned model come from, before any recovery: the caller's own archive where
            only values change, else the shrunk one.
        subject: the pruned model, thawed where the archive is frozen.
        cut: what channels took from each stored tensor; empty where only values change.
        notes: what people should know.
    """

    plan: PruningPlan | StructuralPlan
    archive: ModelArchive
    subject: torch.jit.ScriptModule
    cut: Cut
    notes: tuple[str, ...] = ()

    @property
    def masks(self) -> Mapping[str, Mask]:
        """The masks by weight name; none where channels went."""
        return self.plan.masks if isinstance(self.plan, PruningPlan) else {}


def make_plan(spec: PruningSpec, loaded: Loaded, observed: Observed) -> PruningPlan | StructuralPlan:
    """Asks the strategy.

    Raises:
        JobFailureError: nothing would be left, nothing can be pruned, or the target cannot be reached; the message says
            what to change.
    """
    if not isinstance(spec.strategy, StaticStrategy) or spec.target is None:
        raise JobFailureError(Reason.NOT_IMPLEMENTED, "This version prunes by the static strategy and a target.")
    if observed.channels is not None:
        inputs = observed.channels.inputs(loaded.subject, observed.selection.weights)
        return plan_structure(inputs, spec.strategy, spec.target, spec.seed, exclude_layers=spec.exclude_layers)
    strategy = strategies.get("static")
    return strategy.plan(observed.selection.inputs(loaded.subject), spec.strategy, spec.target, spec.seed)


def prune(
    plan: PruningPlan | StructuralPlan, loaded: Loaded, observed: Observed, folder: RunFolder, story: Story
) -> Pruned:
    """Writes the zeros, or removes the channels."""
    for note in plan.notes:
        story.note(note)
    if isinstance(plan, PruningPlan):
        masking.apply({name: get_tensor(loaded.subject, name) for name in plan.masks}, plan.masks)
        story.count(parameters_processed=plan.prunable_weights, parameters_removed=plan.removed_weights)
        return Pruned(plan, loaded.archive, loaded.subject, ())
    if observed.channels is None:
        raise JobFailureError(Reason.INTERNAL, "Channels were planned that were never observed; please report this.")
    feeds = {"forward": observed.feed, **observed.method_feeds}
    runs = [(name, inputs) for name, feed in feeds.items() for inputs in sample_runs(feed, observed.rule)]
    removed = remove_channels(loaded.archive, observed.channels, plan.removal, folder, runs)
    for note in removed.notes:
        story.note(note)
    subject = thaw(removed.archive.load())
    # As the report counts them; a state_dict leaves out what was thawed.
    before, after = observed.parameters.parameters, count_parameters(subject).parameters
    story.count(parameters_processed=before, parameters_removed=before - after)
    return Pruned(plan, removed.archive, subject, removed.cut, removed.notes)
