"""Gradient steps at a decaying rate: batches, their variants, and what is done where memory or numbers run out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pruning_server.recovery.augmentation import Augmentation
from pruning_server.recovery.lesson import Lesson, blended
from pruning_server.recovery.optimizer import MaskedOptimizer, Rule
from pruning_server.recovery.ports import Batch, FitData
from pruning_server.recovery.raised import is_out_of_memory
from pruning_server.recovery.schedule import batches, decayed

MAX_SKIPPED_STEPS = 10


@dataclass(frozen=True)
class Recipe:
    """An optimiser and the rate of its first step."""

    rule: Rule
    rate: float


class Trainer:
    """Takes steps at a decaying rate; halves it where a gradient is not finite.

    Args:
        lesson: what to train.
        recipe: how.
        total_steps: after which the rate is zero.
        augmentation: variants to show; None: the samples as they are.
        data: what to train on; None: the lesson's.
    """

    def __init__(
        self,
        lesson: Lesson,
        recipe: Recipe,
        total_steps: int,
        augmentation: Augmentation | None = None,
        data: FitData | None = None,
    ) -> None:
        self._lesson = lesson
        self._data = data or lesson.data
        self._optimizer = MaskedOptimizer(
            lesson.student.parameters,
            lesson.masks,
            lesson.plan.weight_decay,
            recipe.rule,
            half=lesson.autocast == torch.float16,
        )
        self._rate = recipe.rate
        self._total_steps = total_steps
        self._augmentation = augmentation
        self._views = np.random.default_rng((lesson.plan.seed, 1))
        self._skipped = 0
        self._largest_pass: int | None = None
        self.steps = 0
        self.samples = 0

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return decayed(self._rate, self.steps, self._total_steps)

    @property
    def diverged(self) -> bool:
        """Whether lower rates did not help either."""
        return self._skipped >= MAX_SKIPPED_STEPS

    def epoch(self, generator: np.random.Generator, max_steps: int | None = None) -> float:
        """Trains on every sample once and returns the mean loss; NaN where there was no step."""
        lesson = self._lesson
        lesson.enter_training()
        total, count = 0.0, 0
        for passes in batches(self._data.samples, lesson.plan.batch_size, lesson.student.exact_batch, generator):
            if self.diverged or (max_steps is not None and self.steps >= max_steps):
                break
            size = sum(len(rows) for rows in passes)
            total += self._step(passes) * size
            count += size
        self.samples += count
        return total / count if count else float("nan")

    def _step(self, passes: tuple[tuple[int, ...], ...]) -> float:
        while True:
            try:
                value = self._accumulate(self._split(passes))
                break
            except (RuntimeError, MemoryError) as error:
                largest = max(len(rows) for rows in self._split(passes))
                if not is_out_of_memory(error) or largest == 1 or self._lesson.student.exact_batch is not None:
                    raise
                # The same step in smaller passes: gradients add up, memory does not.
                self._largest_pass = largest // 2
        if self._optimizer.step(self.learning_rate):
            self._skipped = 0
        else:
            self._skipped += 1
            self._rate /= 2
        self.steps += 1
        return value

    def _accumulate(self, passes: tuple[tuple[int, ...], ...]) -> float:
        lesson, value = self._lesson, 0.0
        size = sum(len(rows) for rows in passes)
        self._optimizer.zero_grad()
        for rows in passes:
            batch = self._shown(self._data.batch(rows))
            with lesson.passing():
                loss = blended(lesson, lesson.forward(batch.inputs), batch) * (len(rows) / size)
                self._optimizer.backward(loss)
            value += float(loss.detach())
        return value

    def _shown(self, batch: Batch) -> Batch:
        teacher = self._lesson.teacher
        if self._augmentation is None or teacher is None:
            return batch
        inputs = self._augmentation.apply(batch.inputs, self._views)
        return replace(batch, inputs=inputs, reference=teacher.outputs(inputs).to(batch.reference))

    def _split(self, passes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        if self._largest_pass is None:
            return passes
        size = self._largest_pass
        return tuple(rows[i : i + size] for rows in passes for i in range(0, len(rows), size))


def steps_per_epoch(lesson: Lesson, data: FitData | None = None) -> int:
    """How many steps go over the data once."""
    samples = (data or lesson.data).samples
    probe = np.random.default_rng(lesson.plan.seed)
    return sum(1 for _ in batches(samples, lesson.plan.batch_size, lesson.student.exact_batch, probe))
