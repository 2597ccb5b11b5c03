"""The controller: prune on while the select split stays within the budget, else go back and try half the step.

What a step costs is won back without a gradient first, as recovery does it; only where that is not enough does the step
take a part of the epochs. So most of them are left for the pruned model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pruning_server.pruning.dynamic.controller import Controller
from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.ports import Score
from pruning_server.recovery.scheduled import SteppedTraining, Trained, judged
from pruning_server.worker.planning.dynamic_diary import Diary
from pruning_server.worker.planning.dynamic_school import School
from pruning_server.worker.planning.dynamic_units import Bench

# Of the way to the target: there, what harms least is measured again.
MEASURED_AGAIN = 0.5
# Parts of the schedule's training; a step of the controller takes one, where it needs any.
PARTS = 8
ROUNDING = 1e-9
NOT_TRAINED = Trained(float("nan"), 0)


@dataclass(frozen=True)
class Limits:
    """The unpruned model's score on select, how much of the metric may be lost, and how many gradient steps there are."""

    original: Score
    budget: float
    total_steps: int

    def hold(self, score: Score) -> bool:
        """Whether a score is within the budget; what is not a number is not."""
        return score.metric >= self.original.metric - self.budget - ROUNDING


def run_controller(
    bench: Bench, school: School, training: SteppedTraining | None, limits: Limits, diary: Diary
) -> float:
    """Prunes on as long as the metric on select stays within the budget; returns the share of the way that it went."""
    units, controller = bench.units, Controller()
    start, go_to_start = Checkpoint.of(bench.tensors), units.remember()
    measured = False
    while not controller.is_over:
        if not measured and controller.accepted >= MEASURED_AGAIN:
            bench.measure_again()
            measured = True
        before = units.reach
        values, go_back = Checkpoint.of(bench.tensors), units.remember()
        units.advance(controller.propose())
        tried = units.reach
        if tried.removed == before.removed:
            controller.accept()
            continue
        trained, score = _win_back(bench, school, training, limits, _pacer(controller, diary))
        stays = limits.hold(score)
        if stays:
            controller.accept()
        else:
            values.restore()
            go_back()
            controller.reject()
        diary.step(
            "accept" if stays else "rollback",
            training.steps if training is not None else 0,
            tried,
            came_back=0 if stays else tried.removed - before.removed,
            loss=trained.loss,
            score=score,
        )
        _tell(diary, stays=stays, original=limits.original, score=score, tried=tried.sparsity, kept=before.sparsity)
        diary.trained(trained, score, units.reach, epoch=0, fraction=controller.progress)
    units.hold()
    if controller.accepted >= 1.0:
        start_over = _Start(start, go_to_start)
        _try_at_once(bench, school, limits, diary, start_over, training.steps if training is not None else 0)
    return controller.accepted


@dataclass(frozen=True)
class _Start:
    """Where the controller began: values, and what was off."""

    values: Checkpoint
    go_back: Callable[[], None]


def _try_at_once(bench: Bench, school: School, limits: Limits, diary: Diary, start: _Start, steps: int) -> None:
    """Goes the whole way in one step from the start, and stays there where select says that this is better.

    Steps that were no use so cost nothing: what each is chosen by is not what all of them together come to.
    """
    units, found = bench.units, judged(school.lesson)
    values, go_back = Checkpoint.of(bench.tensors), units.remember()
    start.values.restore()
    start.go_back()
    bench.forget_measured()
    units.advance(1.0)
    score = school.win_back(units)
    change = f"select loss {score.loss:.4f} at once, {found.loss:.4f} in steps"
    if limits.hold(score) and score.beats(found):
        diary.step("at_once", steps, units.reach, score=score)
        diary.tell(f"the whole way at once is better ({change}), and stays")
        return
    values.restore()
    go_back()
    units.hold()
    diary.tell(f"the whole way at once is no better ({change})")


def _pacer(controller: Controller, diary: Diary) -> Callable[[float], None]:
    """Tells how far one step of the controller is, in shares of it."""
    before, after = controller.progress, controller.next_progress
    return lambda share: diary.moved(before + (after - before) * share)


def _win_back(
    bench: Bench,
    school: School,
    training: SteppedTraining | None,
    limits: Limits,
    pace: Callable[[float], None],
) -> tuple[Trained, Score]:
    """Closed-form recovery of the masked model and, where that leaves it beyond the budget, a part of the training."""
    score = school.win_back(bench.units)
    part = max(1, limits.total_steps // PARTS)
    if limits.hold(score) or training is None or training.steps + part > limits.total_steps:
        return NOT_TRAINED, score
    pace(0.5)
    began = training.steps
    trained = training.run(part, lambda step: pace(0.5 + 0.5 * (step - began) / part))
    return trained, judged(school.lesson)


def _tell(diary: Diary, *, stays: bool, original: Score, score: Score, tried: float, kept: float) -> None:
    change = f"select metric {score.metric:.4f}, originally {original.metric:.4f}, loss {score.loss:.4f}"
    if stays:
        diary.tell(f"{tried:.1%} off stays within the budget ({change})")
    else:
        diary.tell(f"{tried:.1%} off is beyond the budget ({change}); back to {kept:.1%} and half the step")
