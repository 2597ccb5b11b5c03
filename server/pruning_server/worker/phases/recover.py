"""RECOVER: winning accuracy back on a copy of the pruned model, with the pruned weights held at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning_server.graph.modules import get_tensor
from pruning_server.pruning.masks import MaskHolder
from pruning_server.recovery.ladder import Recovered, recover
from pruning_server.recovery.lesson import Lesson
from pruning_server.recovery.ports import Batch, Score
from pruning_server.recovery.schedule import plan_training
from pruning_server.spec.request import PruningSpec
from pruning_server.worker.copies import make_training_copy
from pruning_server.worker.feeding import Feed
from pruning_server.worker.judging import Judging, Reference
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.phases.prune import Pruned
from pruning_server.worker.running import Subject
from pruning_server.worker.story import Story
from pruning_server.worker.student import ModuleStudent, find_statistics, find_trainables


@dataclass(frozen=True)
class Trained:
    """What recovery left.

    Attributes:
        module: holds the values to deliver; its graph and flags may have been rewritten for training.
        feed: how `module` is fed.
        carried: names of the tensors whose values may have changed.
        recovered: how it went; None where recovery was switched off.
        batch_size: samples per step.
        notes: what people should know.
    """

    module: torch.jit.ScriptModule
    feed: Feed
    carried: tuple[str, ...]
    recovered: Recovered | None
    batch_size: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _FitData:
    """Fills `recovery.ports.FitData`: rows of the validation set that may be fitted on."""

    judging: Judging
    reference: Reference
    rows: np.ndarray

    @property
    def samples(self) -> int:
        return len(self.rows)

    def batch(self, rows: Sequence[int]) -> Batch:
        chosen = self.rows[list(rows)]
        reference = self.reference.tensor(chosen)
        return Batch(self.judging.feed.inputs(chosen), self.judging.target(chosen, reference), reference)


def recover_accuracy(
    spec: PruningSpec, loaded: Loaded, observed: Observed, reference: Reference, pruned: Pruned, story: Story
) -> Trained:
    """Recovers on *fit*, chooses on *select*, never looks at *report*."""
    weight_names = tuple(dict.fromkeys((*pruned.masks, *pruned.updated)))
    if spec.recovery.disabled:
        return Trained(pruned.subject, observed.feed, weight_names, None, 0, ("Recovery was switched off.",))
    copy = make_training_copy(pruned.subject, observed.feed, observed.rule)
    module = copy.module
    judging = replace(observed.judging, feed=copy.feed)
    trainables, notes = find_trainables(module, observed.survey.weights, frozen_archive=loaded.frozen_archive)
    state = observed.state_names
    student = ModuleStudent(
        Subject.of(module, observed.rule, keep_statistics=True), trainables, find_statistics(module, state)
    )
    holder = MaskHolder({name: get_tensor(module, name) for name in pruned.masks}, pruned.masks)
    splits = observed.splits
    plan = plan_training(
        spec.fine_tune,
        samples=len(splits.fit),
        macs=observed.macs.total,
        device_type=torch.device(observed.feed.device).type,
        seed=spec.seed,
    )

    def judge() -> Score:
        return judging.score(student.subject, splits.select, reference)

    def progress(*, epoch: int, epochs: int, fraction: float, metrics: dict[str, float], samples: int) -> None:
        story.progress(fraction, epoch=epoch, epochs=epochs, metrics=metrics)
        story.count(samples_trained=samples)

    single = observed.rule.exact_batch == 1 and bool(student.statistic_names)
    lesson = Lesson(
        student=student,
        data=_FitData(judging, reference, splits.fit),
        judge=judge,
        masks=holder,
        objective=observed.objective,
        loss=judging.loss,
        plan=plan,
        progress=progress,
        # Statistics of a single sample are not those of the data.
        training_mode=not single,
    )
    recovered = recover(lesson)
    carried = dict.fromkeys((*weight_names, *(t.name for t in trainables), *student.statistic_names))
    return Trained(
        module, copy.feed, tuple(carried), recovered, plan.batch_size, (*copy.notes, *notes, *recovered.notes)
    )
