"""Masked fine-tuning: the caller's loss and distillation from the original, a rate that decays to zero, best on select.

Zeros stay exactly zero after every step. Optimiser and learning rate are tried out where the request leaves them open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pruning_server.recovery.augmentation import Augmentation, find_augmentation
from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.lesson import Lesson
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.optimizer import Rule
from pruning_server.recovery.ports import Score
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.recovery.schedule import TARGET_STEPS
from pruning_server.recovery.trainer import Recipe, Trainer, steps_per_epoch

# The highest rate first.
NORMALIZED_RECIPES = tuple(Recipe(Rule.MOMENTUM, rate) for rate in (0.08, 0.04, 0.02, 0.01, 0.004))
OTHER_RECIPES = (Recipe(Rule.ADAMW, 3e-3), Recipe(Rule.ADAMW, 1e-3), Recipe(Rule.ADAMW, 3e-4))
# What so few steps leave says little of a whole training. One this short is therefore run whole at every rate, as long as
# all of them together take no more steps than an automatic training.
MIN_TRIAL_STEPS, MAX_TRIAL_STEPS = 30, 100
# Of the steps of the request, for all trials together.
TRIED_SHARE = 0.2
# High rates win late (Le and Hua, 2021, arXiv 2105.03193): the highest whose trial is not much worse than the best one's.
MAX_TRIAL_LOSS_RATIO = 1.08
# Fitting once more costs as much again; fewer additional samples are not worth it.
MIN_ADDED_SHARE = 0.2


@dataclass(frozen=True)
class Epoch:
    """One pass over fit, and the score on select after it."""

    epoch: int
    learning_rate: float
    train_loss: float
    select_metric: float
    select_loss: float


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning came to; the student holds the weights of `score` where `improved`, else those it began with."""

    improved: bool
    score: Score
    learning_rate: float
    history: tuple[Epoch, ...]
    notes: tuple[str, ...]
    steps: int = 0


@dataclass(frozen=True)
class _Pass:
    """Where a sequence of epochs came to."""

    best: Score
    best_weights: Checkpoint | None
    history: tuple[Epoch, ...]
    notes: tuple[str, ...]
    steps: int


def fine_tune(lesson: Lesson, start: Score) -> FineTuned:
    """Trains from the student's present weights and leaves it with the best found on select.

    Args:
        lesson: what to train, on what, how long.
        start: the student's present score on select, which training has to beat.

    Raises:
        JobFailureError: the caller's loss module does not fit (LOSS_UNSUITABLE).

    Source: Han, Pool, Tran and Dally, 2015, arXiv 1506.02626 (retraining under a fixed mask).
    """
    torch.manual_seed(lesson.plan.seed)
    origin = Checkpoint.of(lesson.tensors)
    augmentation, notes = _augmentation(lesson)
    recipes, tried = _recipes(lesson, origin, augmentation)
    recipe, done, steps = _best_of(lesson, recipes, augmentation, origin, start)
    tried += steps - done.steps
    improved = done.best_weights is not None and done.best.beats(start)
    (done.best_weights if improved and done.best_weights else origin).restore()
    score = done.best if improved else start
    more, extra = _refit_on_all(lesson, recipe, augmentation, origin, start, done) if improved else ((), 0)
    return FineTuned(
        improved=improved,
        score=score,
        learning_rate=recipe.rate,
        history=done.history,
        notes=(*notes, *_told(recipe, lesson, len(recipes)), *done.notes, *more),
        steps=tried + done.steps + extra,
    )


def _augmentation(lesson: Lesson) -> tuple[Augmentation | None, tuple[str, ...]]:
    """Which variants of the samples are shown, and a note on them."""
    if lesson.teacher is None:
        return None, ()
    try:
        found = find_augmentation(
            lesson.data, lesson.teacher, lesson.objective, lesson.student.exact_batch, lesson.plan.seed
        )
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return None, (f"Samples were shown as they are, since the original raised on variants: {last_line(error)}",)
    if found is None:
        return None, ()
    shown = [
        *(["mirrored"] if found.flips else []),
        *([f"shifted by up to {found.shift} pixels"] if found.shift else []),
    ]
    return found, (f"Fine-tuning showed the images {' and '.join(shown)} too, which the original answers alike.",)


def _told(recipe: Recipe, lesson: Lesson, trainings: int) -> tuple[str, ...]:
    if lesson.plan.learning_rate:
        return ()
    chosen = f"; of {trainings} trainings, each from the same weights, it did best on select" if trainings > 1 else ""
    return (f"Fine-tuning stepped by {recipe.rule.value}, at first at a rate of {recipe.rate:g}{chosen}.",)


# --- Finding the rate -------------------------------------------------------------------------------------------------


def _recipes(lesson: Lesson, origin: Checkpoint, augmentation: Augmentation | None) -> tuple[tuple[Recipe, ...], int]:
    """What to train with: the request's rate, the one that wins a brief rehearsal, or all; and the steps that took."""
    plan = lesson.plan
    if plan.learning_rate:
        return (Recipe(Rule.ADAMW, plan.learning_rate),), 0
    normalized = lesson.training_mode and bool(lesson.student.statistics)
    recipes = NORMALIZED_RECIPES if normalized else OTHER_RECIPES
    whole = plan.epochs * steps_per_epoch(lesson)
    steps = min(MAX_TRIAL_STEPS, int(TRIED_SHARE * whole / len(recipes)))
    if steps < MIN_TRIAL_STEPS and whole * len(recipes) <= TARGET_STEPS and plan.affords(len(recipes)):
        return recipes, 0
    steps = min(max(steps, MIN_TRIAL_STEPS), whole)
    losses, taken = [], 0
    for recipe in recipes:
        loss, count = _try(lesson, recipe, steps, augmentation)
        origin.restore()
        losses.append(loss)
        taken += count
    return (_highest(recipes, losses),), taken


def _best_of(
    lesson: Lesson, recipes: Sequence[Recipe], augmentation: Augmentation | None, origin: Checkpoint, start: Score
) -> tuple[Recipe, _Pass, int]:
    """Trains with each from the same weights; the one that came to the best score on select, and all steps taken."""
    winner, best, steps = recipes[0], None, 0
    for number, recipe in enumerate(recipes):
        origin.restore()
        done = _train(lesson, recipe, augmentation, start, (number, len(recipes)))
        steps += done.steps
        if best is None or _came_further(done, best):
            winner, best = recipe, done
    if best is None:
        raise ValueError("there is no recipe")
    return winner, best, steps


def _came_further(one: _Pass, other: _Pass) -> bool:
    if (one.best_weights is None) != (other.best_weights is None):
        return one.best_weights is not None
    return one.best.beats(other.best)


def _try(lesson: Lesson, recipe: Recipe, steps: int, augmentation: Augmentation | None) -> tuple[float, int]:
    torch.manual_seed(lesson.plan.seed)
    trainer = Trainer(lesson, recipe, steps, augmentation)
    generator = np.random.default_rng(lesson.plan.seed)
    while trainer.steps < steps and not trainer.diverged:
        before = trainer.steps
        trainer.epoch(generator, max_steps=steps)
        if trainer.steps == before:
            break
    lesson.progress(epoch=0, epochs=lesson.plan.epochs, fraction=0.0, metrics={}, samples=trainer.samples)
    loss = _judged(lesson).loss
    return (loss if math.isfinite(loss) else math.inf), trainer.steps


def _highest(recipes: Sequence[Recipe], losses: Sequence[float]) -> Recipe:
    """The highest rate whose loss is not much above the best."""
    best = min(losses)
    limit = best * MAX_TRIAL_LOSS_RATIO if best > 0 else best
    return next((one for one, loss in zip(recipes, losses, strict=True) if loss <= limit), recipes[-1])


# --- Training ---------------------------------------------------------------------------------------------------------


def _train(
    lesson: Lesson, recipe: Recipe, augmentation: Augmentation | None, start: Score, part: tuple[int, int]
) -> _Pass:
    """One training; `part`: its number of how many there are, for the progress."""
    plan = lesson.plan
    torch.manual_seed(plan.seed)
    generator = np.random.default_rng(plan.seed)
    trainer = Trainer(lesson, recipe, plan.epochs * steps_per_epoch(lesson), augmentation)
    best, weights, history, notes, since_best = start, None, [], [], 0
    lowest = start.loss if math.isfinite(start.loss) else math.inf
    for epoch in range(1, plan.epochs + 1):
        before = trainer.samples
        loss = trainer.epoch(generator)
        score = _judged(lesson)
        history.append(Epoch(epoch, trainer.learning_rate, loss, score.metric, score.loss))
        metrics = {"train_loss": loss, "select_metric": score.metric, "select_loss": score.loss}
        lesson.progress(
            epoch=epoch,
            epochs=plan.epochs,
            fraction=(part[0] + epoch / plan.epochs) / part[1],
            metrics=metrics,
            samples=trainer.samples - before,
        )
        since_best += 1
        if score.loss < lowest:
            lowest, since_best = score.loss, 0
        # Each may tie with the one before, and the last still be worse than the start.
        if score.beats(best) and not start.beats(score):
            best, weights, since_best = score, Checkpoint.of(lesson.tensors), 0
        if trainer.diverged:
            notes.append(f"Training stopped in epoch {epoch}: its gradients were no longer finite.")
            break
        if plan.patience_epochs is not None and since_best >= plan.patience_epochs:
            break
    return _Pass(best, weights, tuple(history), tuple(notes), trainer.steps)


def _refit_on_all(
    lesson: Lesson, recipe: Recipe, augmentation: Augmentation | None, origin: Checkpoint, start: Score, done: _Pass
) -> tuple[tuple[str, ...], int]:
    """Trains once more from the same weights, on select as well, for as many epochs as did best; a note, and the steps.

    Nothing is left that could judge the outcome, so that it is done only where training on fit alone helped beyond doubt,
    and kept unless it answers select, which it has now seen, worse than before.
    """
    data, plan = lesson.all_data, lesson.plan
    added = data.samples - lesson.data.samples if data is not None else 0
    if data is None or not plan.refits or added < MIN_ADDED_SHARE * lesson.data.samples:
        return (), 0
    if done.best.metric - start.metric < 0.5 / math.sqrt(added):
        return (), 0
    kept = Checkpoint.of(lesson.tensors)
    epochs = next(number for number, one in enumerate(done.history, 1) if one.select_loss == done.best.loss)
    origin.restore()
    torch.manual_seed(plan.seed)
    generator = np.random.default_rng(plan.seed)
    trainer = Trainer(lesson, recipe, plan.epochs * steps_per_epoch(lesson, data), augmentation, data)
    for _ in range(epochs):
        trainer.epoch(generator)
    again = _judged(lesson)
    if trainer.diverged or done.best.beats(again) or start.beats(again):
        kept.restore()
        return (), trainer.steps
    text = (
        f"The delivered weights were trained once more on fit and select together, for {epochs} epochs, as many as did "
        "best on select; the scores on select are of the training on fit alone."
    )
    return (text,), trainer.steps


def _judged(lesson: Lesson) -> Score:
    lesson.student.eval()
    return lesson.judge()
