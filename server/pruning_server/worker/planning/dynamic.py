"""Dynamic pruning: the model is trained at full size while a schedule switches off what will be removed afterwards.

The schedule has the first half of the request's epochs; recovery has what is left after the removal.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pruning_server.errors import InvalidRequestError, JobFailureError, NotImplementedFeatureError, Reason
from pruning_server.pruning import schedules
from pruning_server.pruning.rounding import round_down, round_up
from pruning_server.pruning.schedules import Schedule
from pruning_server.pruning.values import PruningPlan, StructuralPlan
from pruning_server.recovery.ports import Score
from pruning_server.recovery.scheduled import SteppedTraining, judged, prepare
from pruning_server.recovery.trainer import steps_per_epoch
from pruning_server.spec.report_strategy import DynamicDetails
from pruning_server.spec.request import DynamicStrategy, Granularity, TargetKind
from pruning_server.worker.planning.context import Planning
from pruning_server.worker.planning.continuing import default_schedule, gentler, left_off, resume, start_from
from pruning_server.worker.planning.dynamic_control import Limits, run_controller
from pruning_server.worker.planning.dynamic_diary import PREPARED, Diary
from pruning_server.worker.planning.dynamic_school import School, open_school, whole_training
from pruning_server.worker.planning.dynamic_timed import run_timed
from pruning_server.worker.planning.dynamic_units import Bench, lay_out

# Of the bar: the schedule has half of the epochs, recovery the others.
TRAINING_SHARE = 0.35


def plan(context: Planning, strategy: DynamicStrategy) -> PruningPlan | StructuralPlan:
    """Masks, or the channels to remove, with the values that training has left.

    Raises:
        InvalidRequestError: an unknown schedule or criterion, or a schedule that needs epochs or a target without them.
        JobFailureError: nothing can be pruned or trained, or the target cannot be reached.
    """
    earlier = context.loaded.earlier
    schedule = schedules.get(strategy.schedule or default_schedule(strategy, earlier))
    epochs = (whole_training(context).epochs + 1) // 2
    _check(context, strategy, schedule, epochs)
    context.story.expect_long_planning(TRAINING_SHARE)
    school = open_school(context, trains=epochs > 0)
    context.story.progress(PREPARED / 4)
    original = judged(school.lesson)
    if earlier is not None:
        start_from(earlier, school)
    bench = lay_out(context, strategy, school)
    if schedule.timing is None or schedule.timing.holds:
        school.masks.hold_now = bench.units.hold
    per_epoch = max(1, steps_per_epoch(school.lesson))
    context.story.progress(PREPARED / 2)
    diary = Diary(context.story, schedule.name, epochs)
    training = _start(schedule, bench, school, epochs * per_epoch) if epochs else None
    if earlier is not None:
        resume(earlier, bench, context.observed)
    notes: tuple[str, ...] = ()
    diary.moved(0.0)
    if schedule.timing is not None and training is not None:
        timing = schedule.timing if earlier is None else gentler(schedule.timing)
        notes = run_timed(timing, bench, school, training, epochs, per_epoch, diary)
    else:
        limits = Limits(original, context.spec.evaluation.margin, epochs * per_epoch)
        way = run_controller(bench, school, training, limits, diary)
        _require_reached(context, bench, way)
    budget = context.spec.evaluation.margin if schedule.timing is None else None
    if earlier is not None:
        notes += left_off(earlier, bench.units.reach, context.spec.target)
    details = _details(schedule, training, per_epoch, original, budget, diary)
    made = bench.units.plan({**(earlier.values if earlier else {}), **school.values()})
    return replace(made, notes=(*made.notes, *school.notes, *notes), details=details, choice=bench.choice)


def _details(
    schedule: Schedule,
    training: SteppedTraining | None,
    per_epoch: int,
    original: Score,
    budget: float | None,
    diary: Diary,
) -> DynamicDetails:
    steps = training.steps if training is not None else 0
    return DynamicDetails(
        schedule=schedule.name,
        source=schedule.source,
        epochs=-(-steps // per_epoch),
        gradient_steps=steps,
        learning_rate=training.first_rate if training is not None else None,
        original_metric=original.metric,
        budget=budget,
        steps=tuple(diary.steps),
    )


def _check(context: Planning, strategy: DynamicStrategy, schedule: Schedule, epochs: int) -> None:
    granularity = strategy.granularity
    if granularity not in schedule.granularities:
        raise NotImplementedFeatureError(f"the schedule {schedule.name} with granularity {granularity.value}")
    if schedule.needs_target and context.spec.target is None and granularity is not Granularity.NM:
        raise InvalidRequestError.for_field("spec.target", f"is needed for the schedule {schedule.name}")
    if schedule.timing is not None and not epochs:
        text = f"is 0, and the schedule {schedule.name} prunes while it trains; ask for epochs, or for static pruning"
        raise InvalidRequestError.for_field("spec.fine_tune.epochs", text)


def _start(schedule: Schedule, bench: Bench, school: School, total_steps: int) -> SteppedTraining:
    """Training with a rate that was tried out; nothing is off yet."""
    units = bench.units
    go_back = units.remember()
    rehearsed = 0.5 if schedule.timing is None else 1.0
    training = prepare(school.lesson, lambda: units.reselect(rehearsed), total_steps, bench.tensors)
    go_back()
    torch.manual_seed(school.lesson.plan.seed)
    return training


def _require_reached(context: Planning, bench: Bench, way: float) -> None:
    target, reach = context.spec.target, bench.units.reach
    budget = f"the select split may lose {context.spec.evaluation.margin:g} (the margin)"
    if not reach.removed:
        text = f"no step of the controller stayed within the budget: {budget}; allow more, or give it more epochs"
        raise JobFailureError(Reason.TARGET_UNREACHABLE, text)
    if target is None or way >= 1.0:
        return
    if target.kind is TargetKind.SPARSITY:
        nearest, word = round_down(reach.achieved), "at most"
    else:
        nearest, word = round_up(reach.achieved), "at least"
    text = (
        f"{target.kind.value} {target.value:g} was not reached within the budget: {budget}; ask for {word} {nearest:g}, "
        "allow more, or give it more epochs"
    )
    metadata = {"target": target.kind.value, "nearest": repr(nearest)}
    raise JobFailureError(Reason.TARGET_UNREACHABLE, text, metadata=metadata)
