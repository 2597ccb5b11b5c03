"""Candidates: pruned and recovered models that a search makes one after another, each by the code of an ordinary job."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.training import thaw
from pruning_server.pruning.evidence import SampleScores
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.spec.request import PruningSpec, StaticStrategy, Target
from pruning_server.worker.carrying import carry_over
from pruning_server.worker.judging import Outputs, Reference
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.phases.prune import Pruned, prune
from pruning_server.worker.phases.recover import Trained, recover_accuracy
from pruning_server.worker.planning import static
from pruning_server.worker.planning.context import Planning
from pruning_server.worker.running import Subject
from pruning_server.worker.story_part import StoryPart

UNREACHABLE = frozenset({Reason.TARGET_UNREACHABLE, Reason.EVERYTHING_PRUNED})


def plan_candidate(context: Planning, strategy: StaticStrategy, target: Target) -> PruningPlan | StructuralPlan | None:
    """What an ordinary static job would remove; None where the model cannot be pruned that far.

    Raises:
        JobFailureError: nothing of the model can be pruned at all, or its data does not serve the criterion.
    """
    spec = msgspec.structs.replace(context.spec, strategy=strategy, target=target)
    try:
        return static.plan(replace(context, spec=spec), strategy)
    except JobFailureError as error:
        if error.reason in UNREACHABLE:
            return None
        raise


def prune_candidate(context: Planning, plan: PruningPlan | StructuralPlan, name: str) -> Pruned:
    """Carries a plan out on a load of its own, with its files in a folder of its own."""
    loaded = replace(context.loaded, subject=thaw(context.loaded.archive.load()))
    return prune(plan, loaded, context.observed, context.folder.within(name), StoryPart(context.story, 0.0, 0.0))


def recover_candidate(context: Planning, pruned: Pruned, spec: PruningSpec, start: float, end: float) -> Trained:
    """Recovers it as `spec` says, while the story goes from `start` to `end` of the phase."""
    story = StoryPart(context.story, start, end)
    return recover_accuracy(spec, context.loaded, context.observed, context.reference, pruned, story)


def judge_candidate(context: Planning, pruned: Pruned, trained: Trained, rows: np.ndarray) -> SampleScores:
    """What the rows say of what would be delivered: the trained values in a fresh load of the pruned archive."""
    observed = context.observed
    frozen = context.loaded.frozen_archive
    module = carry_over(pruned.archive, trained.module, trained.carried, frozen_archive=frozen)
    judging, units = observed.judging, observed.splits.units[rows]
    try:
        outputs = judging.outputs(Subject.of(module.eval(), observed.rule), rows)
    except JobFailureError as error:
        if error.reason is not Reason.MODEL_NOT_FINITE:
            raise
        nothing = np.full(len(rows), np.nan)
        return SampleScores(nothing, nothing, units)
    values = judging.values(outputs, context.reference.values[rows])
    return SampleScores(values.metric, values.loss, units)


def judge_original(observed: Observed, rows: np.ndarray, reference: Reference) -> SampleScores:
    """What the rows say of the original, by the outputs that are known of it."""
    known = reference.values[rows]
    values = observed.judging.values(Outputs(rows, known), known)
    return SampleScores(values.metric, values.loss, observed.splits.units[rows])
