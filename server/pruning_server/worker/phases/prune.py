"""PRUNE: what was planned is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.cost import count_parameters
from pruning_server.graph.modules import get_tensor
from pruning_server.graph.proof.masked import cuts_by_name, select_kept
from pruning_server.graph.structure import Cut
from pruning_server.graph.training import thaw
from pruning_server.pruning import masks as masking
from pruning_server.pruning.values import Mask, PruningPlan, StructuralPlan
from pruning_server.spec.report_strategy import DynamicDetails
from pruning_server.worker.archives import ModelArchive
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.story import Story
from pruning_server.worker.structures import remove_channels, rename, sample_runs, sized_runs


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
        updated: names of the tensors of `subject` whose values the plan changed.
    """

    plan: PruningPlan | StructuralPlan
    archive: ModelArchive
    subject: torch.jit.ScriptModule
    cut: Cut
    notes: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()

    @property
    def masks(self) -> Mapping[str, Mask]:
        """The masks by weight name; none where channels went."""
        return self.plan.masks if isinstance(self.plan, PruningPlan) else {}

    @property
    def spent_epochs(self) -> int:
        """Epochs of the request that planning has used, so that recovery has the others."""
        details = self.plan.details
        return details.epochs if isinstance(details, DynamicDetails) else 0


def prune(
    plan: PruningPlan | StructuralPlan, loaded: Loaded, observed: Observed, folder: RunFolder, story: Story
) -> Pruned:
    """Writes new values and the zeros, or removes the channels."""
    for note in plan.notes:
        story.note(note)
    updated = tuple(plan.updates)
    if isinstance(plan, PruningPlan):
        _write(loaded.subject, plan.updates, ())
        masking.apply({name: get_tensor(loaded.subject, name) for name in plan.masks}, plan.masks)
        story.count(parameters_processed=plan.prunable_weights, parameters_removed=plan.removed_weights)
        return Pruned(plan, loaded.archive, loaded.subject, (), updated=updated)
    if observed.channels is None:
        raise JobFailureError(Reason.INTERNAL, "Channels were planned that were never observed; please report this.")
    feeds = {"forward": observed.feed, **observed.method_feeds}
    runs = [(name, inputs) for name, feed in feeds.items() for inputs in sample_runs(feed, observed.rule)]
    runs += [("forward", inputs) for inputs in sized_runs(observed.feed, observed.rule, observed.sizes)]
    removed = remove_channels(loaded.archive, observed.channels, plan.removal, folder, runs)
    for note in removed.notes:
        story.note(note)
    subject = thaw(removed.archive.load())
    _write(subject, plan.updates, rename(removed.cut, observed.channels))
    # As the report counts them; a state_dict leaves out what was thawed.
    before, after = observed.parameters.parameters, count_parameters(subject).parameters
    story.count(parameters_processed=before, parameters_removed=before - after)
    return Pruned(plan, removed.archive, subject, removed.cut, removed.notes, updated)


def _write(module: torch.jit.ScriptModule, updates: Mapping[str, torch.Tensor], cut: Cut) -> None:
    """Writes full-size values into a model that the cut may have made smaller."""
    cuts = cuts_by_name(cut)
    with torch.no_grad():
        for name, value in updates.items():
            tensor = get_tensor(module, name)
            tensor.copy_(select_kept(value, cuts.get(name, ())))
