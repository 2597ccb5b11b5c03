"""Schedules that time alone moves."""

from __future__ import annotations

import math

from pruning_server.pruning.schedules import Timing
from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.ports import Score
from pruning_server.recovery.scheduled import AfterStep, SteppedTraining, judged
from pruning_server.worker.planning.dynamic_diary import Diary
from pruning_server.worker.planning.dynamic_school import School
from pruning_server.worker.planning.dynamic_units import Bench

# Scoring anew costs about as much as a step where only the weights are looked at, else as much as an epoch or more.
MAX_CHEAP_UPDATES, MAX_UPDATES = 40, 8
# What comes back needs some steps before it is looked at again.
MAX_EXCHANGES = 10


def run_timed(
    timing: Timing, bench: Bench, school: School, training: SteppedTraining, epochs: int, per_epoch: int, diary: Diary
) -> tuple[str, ...]:
    """Trains for `epochs` of `per_epoch` steps; all that the target takes is switched off afterwards. Returns notes."""
    units = bench.units
    if timing.holds and timing.removed(0.0) > 0:
        units.advance(timing.removed(0.0))
        diary.step("prune", 0, units.reach, score=school.win_back(units))
    move = None if timing.per_epoch else _mover(timing, bench, school, training, epochs * per_epoch, diary)

    def after_step(step: int) -> None:
        if move is not None:
            move(step)
        diary.moved(step / (epochs * per_epoch))

    notes: tuple[str, ...] = ()
    good = Checkpoint.of(bench.tensors)
    for epoch in range(1, epochs + 1):
        trained = training.run(per_epoch, after_step)
        if timing.per_epoch:
            units.reselect(timing.removed(epoch / epochs))
        score = judged(school.lesson)
        action = "reselect" if timing.per_epoch else "epoch"
        step = diary.step(action, training.steps, units.reach, loss=trained.loss, score=score)
        diary.trained(trained, score, units.reach, epoch=epoch, fraction=epoch / epochs)
        diary.tell(f"epoch {epoch} of {epochs}, {step.sparsity:.1%} off, {_shown(score)}")
        if not math.isfinite(score.loss) or training.diverged:
            notes = (f"Training under the schedule stopped in epoch {epoch}: it was no longer finite.",)
            good.restore()
            break
        good = Checkpoint.of(bench.tensors)
    _finish(timing, bench)
    return notes


def _mover(
    timing: Timing, bench: Bench, school: School, training: SteppedTraining, total: int, diary: Diary
) -> AfterStep:
    """Moves what is off at the updates, which are spread evenly over the steps."""
    units = bench.units
    updates = MAX_CHEAP_UPDATES if bench.cheap else MAX_UPDATES
    if timing.exchanged(0.0) > 0:
        updates = min(updates, MAX_EXCHANGES)
    interval = max(1, total // updates)

    def after_step(step: int) -> None:
        if step % interval and step != total:
            return
        before, share = units.reach.removed, timing.exchanged(step / total)
        came_back = units.exchange(share, training.gradient) if share else 0
        units.advance(timing.removed(step / total))
        if came_back or units.reach.removed != before:
            diary.step("exchange" if share else "prune", step, units.reach, came_back=came_back)
        # Scores may have come from runs in evaluation mode.
        school.lesson.enter_training()

    return after_step


def _finish(timing: Timing, bench: Bench) -> None:
    if timing.holds:
        bench.units.advance(1.0)
    else:
        bench.units.reselect(1.0)
    bench.units.hold()


def _shown(score: Score) -> str:
    return f"select metric {score.metric:.4f}, loss {score.loss:.4f}"
