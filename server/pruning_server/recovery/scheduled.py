"""Training while something else decides what is pruned: steps one by one, with gradients to look at after each.

The loss, the optimiser and the batches are those of fine-tuning. The rate falls to half, not to zero: what the schedule
leaves is fine-tuned afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pruning_server.recovery.augmentation import Augmentation, find_augmentation
from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.finetune import NORMALIZED_RECIPES, OTHER_RECIPES
from pruning_server.recovery.lesson import Lesson
from pruning_server.recovery.model_errors import MODEL_ERRORS
from pruning_server.recovery.optimizer import Rule
from pruning_server.recovery.ports import Score
from pruning_server.recovery.raised import is_out_of_memory
from pruning_server.recovery.schedule import batches
from pruning_server.recovery.trainer import Recipe, Trainer

TRIAL_STEPS = 30

AfterStep = Callable[[int], None]
"""Hears how many steps have been taken."""

Tensors = Callable[[], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Trained:
    """What some steps came to: the mean loss over their samples (NaN without a step), and how many samples."""

    loss: float
    samples: int


class SteppedTraining(Trainer):
    """Training that can be interrupted after any step, and goes on where it was, also in the middle of an epoch.

    Args:
        lesson: what to train, on what; its plan's epochs are not looked at.
        recipe: how.
        total_steps: how many there will be, for the rate.
        augmentation: variants to show; None: the samples as they are.
    """

    def __init__(
        self, lesson: Lesson, recipe: Recipe, total_steps: int, augmentation: Augmentation | None = None
    ) -> None:
        # The rate would be zero after twice as many.
        super().__init__(lesson, recipe, 2 * total_steps, augmentation)
        self._generator = np.random.default_rng(lesson.plan.seed)
        self._waiting: Iterator[tuple[tuple[int, ...], ...]] = iter(())
        self.first_rate = recipe.rate

    def run(self, steps: int, after_step: AfterStep | None = None) -> Trained:
        """Takes steps; none once training has diverged, or where not even one batch can be made."""
        self._lesson.enter_training()
        total, count = 0.0, 0
        for _ in range(steps):
            passes = self._next()
            if passes is None or self.diverged:
                break
            size = sum(len(rows) for rows in passes)
            total += self._step(passes) * size
            count += size
            if after_step is not None:
                after_step(self.steps)
        self.samples += count
        return Trained(total / count if count else float("nan"), count)

    def gradient(self, name: str) -> torch.Tensor | None:
        """What the last step's loss said of a stored tensor; None where it is not trained or no gradient arrived."""
        for trainable in self._lesson.student.parameters:
            if trainable.name == name:
                found = [t.grad for t in (trainable.tensor, *trainable.aliases) if t.grad is not None]
                return torch.stack(found).sum(dim=0) if found else None
        return None

    def _next(self) -> tuple[tuple[int, ...], ...] | None:
        passes = next(self._waiting, None)
        if passes is None:
            lesson = self._lesson
            size, exact = lesson.plan.batch_size, lesson.student.exact_batch
            self._waiting = batches(lesson.data.samples, size, exact, self._generator)
            passes = next(self._waiting, None)
        return passes


def prepare(lesson: Lesson, prune: Callable[[], None], total_steps: int, tensors: Tensors) -> SteppedTraining:
    """Training by the request's rate, or by what wins most back in a short rehearsal; weights are as before afterwards.

    Args:
        lesson: its masks must hold what `prune` switches off.
        prune: switches off what the target takes, of the weights as they are.
        total_steps: of the training to come.
        tensors: everything that training or `prune` writes to.
    """
    augmentation = _augmentation(lesson)
    if lesson.plan.learning_rate:
        return SteppedTraining(lesson, Recipe(Rule.ADAMW, lesson.plan.learning_rate), total_steps, augmentation)
    normalized = lesson.training_mode and bool(lesson.student.statistics)
    recipes = NORMALIZED_RECIPES if normalized else OTHER_RECIPES
    origin = Checkpoint.of(tensors)
    best, best_loss = recipes[0], math.inf
    for recipe in recipes:
        torch.manual_seed(lesson.plan.seed)
        prune()
        SteppedTraining(lesson, recipe, TRIAL_STEPS, augmentation).run(min(TRIAL_STEPS, total_steps))
        loss = judged(lesson).loss
        origin.restore()
        if loss < best_loss:
            best, best_loss = recipe, loss
    return SteppedTraining(lesson, best, total_steps, augmentation)


def _augmentation(lesson: Lesson) -> Augmentation | None:
    """The variants of the samples that fine-tuning shows, too."""
    if lesson.teacher is None:
        return None
    exact, seed = lesson.student.exact_batch, lesson.plan.seed
    try:
        return find_augmentation(lesson.data, lesson.teacher, lesson.objective, exact, seed)
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return None


def judged(lesson: Lesson) -> Score:
    """The student's score on select as it is now."""
    lesson.student.eval()
    return lesson.judge()
