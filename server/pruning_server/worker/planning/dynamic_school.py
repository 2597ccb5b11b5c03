"""The full-size copy that is trained while it is pruned, and everything that training it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.dropout import set_dropout
from pruning_server.graph.modules import get_tensor
from pruning_server.graph.training import thaw
from pruning_server.pruning.dynamic.units import Units
from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.ladder import recover
from pruning_server.recovery.lesson import Lesson, NoGradientError, require_gradient
from pruning_server.recovery.model_errors import TRAINING_ERRORS
from pruning_server.recovery.ports import Score
from pruning_server.recovery.raised import last_line
from pruning_server.recovery.schedule import TrainingPlan, plan_training
from pruning_server.worker.copies import TrainingCopy, make_training_copy
from pruning_server.worker.evidence import ModelEvidence
from pruning_server.worker.fitting import FitRows
from pruning_server.worker.phases.recover import mixed_precision
from pruning_server.worker.planning.context import Planning
from pruning_server.worker.running import Subject
from pruning_server.worker.student import ModuleStudent, find_statistics, find_trainables
from pruning_server.worker.teaching import Original, make_pair

UNTRAINABLE: tuple[type[Exception], ...] = (NoGradientError, *TRAINING_ERRORS)


class MovingMasks:
    """Fills `recovery.ports.Masks` with whatever is switched off at the time; nothing is, until `hold_now` is set."""

    def __init__(self) -> None:
        self.hold_now: Callable[[], object] | None = None

    def hold(self) -> None:
        """Writes the zeros."""
        if self.hold_now is not None:
            self.hold_now()


class PresentEvidence(ModelEvidence):
    """What the caller's data says of the copy as it is now, half trained and half pruned."""

    def __init__(self, context: Planning, copy: TrainingCopy) -> None:
        super().__init__(
            context.loaded,
            context.observed,
            context.reference,
            context.evidence.latency_ratio,
            seed=context.spec.seed,
        )
        self._present = copy

    @cached_property
    def _copy(self) -> TrainingCopy:
        return self._present


@dataclass(frozen=True)
class School:
    """The copy and its lesson.

    Attributes:
        copy: full size, of the original's values at first.
        lesson: how it is trained; its masks are `masks`.
        masks: what is held at zero while it is.
        evidence: of the copy as it is at the time.
        carried: names of the tensors whose values may change.
        notes: what people should know.
    """

    copy: TrainingCopy
    lesson: Lesson
    masks: MovingMasks
    evidence: PresentEvidence
    carried: tuple[str, ...]
    notes: tuple[str, ...]

    def tensor(self, name: str) -> torch.Tensor:
        """A stored tensor of the copy."""
        return get_tensor(self.copy.module, name)

    def holds(self, name: str) -> bool:
        """Whether the copy stores a tensor of that name; what stands in the code alone has none."""
        try:
            self.tensor(name)
        except KeyError:
            return False
        return True

    def win_back(self, units: Units) -> Score:
        """Recovery's closed forms on the masked model; the best on select stays."""
        lesson = self.lesson
        pair = None if lesson.pair is None else replace(lesson.pair, removed=units.off())
        return recover(replace(lesson, pair=pair, plan=replace(lesson.plan, epochs=0))).score

    def values(self) -> dict[str, torch.Tensor]:
        """What training made of the tensors that it may change."""
        return {name: self.tensor(name).detach().clone() for name in self.carried}


def whole_training(context: Planning) -> TrainingPlan:
    """What the request asks for of training as a whole, the schedule's part and recovery's together."""
    return plan_training(
        context.spec.fine_tune,
        samples=len(context.observed.splits.fit),
        macs=context.observed.macs.total,
        device_type=torch.device(context.observed.feed.device).type,
        seed=context.spec.seed,
    )


def open_school(context: Planning, *, trains: bool) -> School:
    """Makes the copy, and tries a training pass where it is to be trained.

    Raises:
        JobFailureError: NOTHING_PRUNABLE: the model cannot be trained.
    """
    observed, loaded, reference = context.observed, context.loaded, context.reference
    copy = make_training_copy(thaw(loaded.archive.load()), observed.feed, observed.rule)
    rate = context.spec.fine_tune.dropout
    if rate is not None:
        copy = replace(copy, module=set_dropout(copy.module, rate).module)
    trainables, notes = find_trainables(copy.module, observed.survey.weights, frozen_archive=loaded.frozen_archive)
    student = ModuleStudent(
        Subject.of(copy.module, observed.rule, keep_statistics=True),
        trainables,
        find_statistics(copy.module, observed.state_names),
    )
    judging = replace(observed.judging, feed=copy.feed)
    masks = MovingMasks()
    original = Original(loaded.archive, observed.feed, observed.rule)

    def judge() -> Score:
        return judging.score(student.subject, observed.splits.select, reference)

    lesson = Lesson(
        student=student,
        data=FitRows(judging, reference, observed.splits.fit),
        judge=judge,
        masks=masks,
        objective=observed.objective,
        loss=judging.loss,
        plan=whole_training(context),
        progress=_silent,
        # Statistics of a single sample are not those of the data.
        training_mode=not (observed.rule.exact_batch == 1 and bool(student.statistic_names)),
        pair=make_pair(original, student, copy.feed, observed.splits.fit, (), {}),
        teacher=original,
        autocast=mixed_precision(copy.module, observed.feed.device),
        seconds=context.story.clock.monotonic,
    )
    if trains:
        lesson, more = _trainable(lesson)
        notes = (*notes, *more)
    carried = dict.fromkeys((*(t.name for t in trainables), *student.statistic_names))
    evidence = PresentEvidence(context, copy)
    return School(copy, lesson, masks, evidence, tuple(carried), (*copy.notes, *notes))


def _silent(*, epoch: int, epochs: int, fraction: float, metrics: dict[str, float], samples: int) -> None:
    """Progress is told by whoever runs the schedule."""


def _trainable(lesson: Lesson) -> tuple[Lesson, tuple[str, ...]]:
    """The lesson in the first mode in which a gradient flows."""
    before = Checkpoint.of(lesson.tensors)
    problem: Exception | None = None
    for training_mode in (True, False) if lesson.training_mode else (False,):
        for keeps_overwritten in (False, True):
            variant = replace(lesson, training_mode=training_mode, keeps_overwritten=keeps_overwritten)
            try:
                require_gradient(variant)
            except UNTRAINABLE as error:
                problem = error
                continue
            finally:
                before.restore()
            if training_mode == lesson.training_mode:
                return variant, ()
            return variant, ("Trained as it runs at inference, since the model raised in training mode.",)
    text = (
        f"Dynamic pruning trains the model, and it cannot be trained: {last_line(problem or RuntimeError())} "
        "Use the static strategy."
    )
    raise JobFailureError(Reason.NOTHING_PRUNABLE, text) from problem
