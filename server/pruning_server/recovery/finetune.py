"""Masked fine-tuning: the caller's loss and distillation from the original, a rate that decays to zero, best on select.

Zeros stay exactly zero after every step. The learning rate is tried out where the request leaves it open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pruning_server.recovery.checkpoint import Checkpoint
from pruning_server.recovery.lesson import Lesson, blended
from pruning_server.recovery.optimizer import MaskedOptimizer
from pruning_server.recovery.ports import Score
from pruning_server.recovery.raised import is_out_of_memory
from pruning_server.recovery.schedule import batches, decayed

# AdamW's usual rate and its neighbours; which one fits depends on the net, so it is tried.
TRIED_LEARNING_RATES = (1e-3, 3e-4, 3e-3)
TRIAL_STEPS = 40
TRIAL_SHARE = 0.1
MAX_SKIPPED_STEPS = 10


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


@dataclass(frozen=True)
class _Pass:
    """Where a sequence of epochs came to."""

    best: Score
    best_weights: Checkpoint | None
    history: tuple[Epoch, ...]
    notes: tuple[str, ...]


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
    rate, trial = (lesson.plan.learning_rate, None) if lesson.plan.learning_rate else _try_rates(lesson, origin)
    done = _train(lesson, rate, start)
    candidates = [(done.best, done.best_weights)] + ([(trial.best, trial.best_weights)] if trial else [])
    best, weights = start, origin
    for score, checkpoint in candidates:
        if checkpoint is not None and score.beats(best):
            best, weights = score, checkpoint
    weights.restore()
    return FineTuned(
        improved=weights is not origin, score=best, learning_rate=rate, history=done.history, notes=done.notes
    )


def _try_rates(lesson: Lesson, origin: Checkpoint) -> tuple[float, _Pass]:
    """Trains briefly at each rate from the same weights; the lowest loss on select wins."""
    best_rate, best_loss, best = TRIED_LEARNING_RATES[0], float("inf"), None
    for number, rate in enumerate(TRIED_LEARNING_RATES):
        origin.restore()
        torch.manual_seed(lesson.plan.seed)
        trainer = _Trainer(lesson, rate, total_steps=TRIAL_STEPS)
        generator = np.random.default_rng(lesson.plan.seed)
        while trainer.steps < TRIAL_STEPS and not trainer.diverged:
            if not trainer.epoch(generator, max_steps=TRIAL_STEPS):
                break
        score = _judged(lesson)
        fraction = TRIAL_SHARE * (number + 1) / len(TRIED_LEARNING_RATES)
        lesson.progress(epoch=0, epochs=lesson.plan.epochs, fraction=fraction, metrics={}, samples=trainer.samples)
        loss = score.loss if math.isfinite(score.loss) else float("inf")
        if best is None or loss < best_loss:
            best_rate, best_loss = rate, loss
            best = _Pass(score, Checkpoint.of(lesson.tensors), (), ())
    origin.restore()
    return best_rate, best or _Pass(Score(float("nan"), float("nan")), None, (), ())


def _train(lesson: Lesson, rate: float, start: Score) -> _Pass:
    plan = lesson.plan
    torch.manual_seed(plan.seed)
    generator = np.random.default_rng(plan.seed)
    probe = np.random.default_rng(plan.seed)
    steps_per_epoch = sum(1 for _ in batches(lesson.data.samples, plan.batch_size, lesson.student.exact_batch, probe))
    trainer = _Trainer(lesson, rate, total_steps=plan.epochs * steps_per_epoch)
    best, weights, history, notes, since_best = start, None, [], [], 0
    for epoch in range(1, plan.epochs + 1):
        before = trainer.samples
        loss = trainer.epoch(generator)
        score = _judged(lesson)
        history.append(Epoch(epoch, trainer.learning_rate, loss, score.metric, score.loss))
        fraction = TRIAL_SHARE + (1 - TRIAL_SHARE) * epoch / plan.epochs
        metrics = {"train_loss": loss, "select_metric": score.metric, "select_loss": score.loss}
        lesson.progress(
            epoch=epoch, epochs=plan.epochs, fraction=fraction, metrics=metrics, samples=trainer.samples - before
        )
        since_best += 1
        if score.beats(best):
            best, weights, since_best = score, Checkpoint.of(lesson.tensors), 0
        if trainer.diverged:
            notes.append(f"Training stopped in epoch {epoch}: its gradients were no longer finite.")
            break
        if plan.patience_epochs is not None and since_best >= plan.patience_epochs:
            break
    return _Pass(best, weights, tuple(history), tuple(notes))


class _Trainer:
    """Takes steps at a decaying rate; halves it where a gradient is not finite."""

    def __init__(self, lesson: Lesson, rate: float, total_steps: int) -> None:
        self._lesson = lesson
        self._optimizer = MaskedOptimizer(lesson.student.parameters, lesson.masks, lesson.plan.weight_decay)
        self._rate = rate
        self._total_steps = total_steps
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
        """Trains on every sample of fit once and returns the mean loss; NaN where there was no step."""
        lesson = self._lesson
        lesson.enter_training()
        total, count = 0.0, 0
        for passes in batches(lesson.data.samples, lesson.plan.batch_size, lesson.student.exact_batch, generator):
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
            batch = lesson.data.batch(rows)
            with lesson.passing():
                loss = blended(lesson, lesson.student.forward(batch.inputs), batch) * (len(rows) / size)
                self._optimizer.backward(loss)
            value += float(loss.detach())
        return value

    def _split(self, passes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        if self._largest_pass is None:
            return passes
        size = self._largest_pass
        return tuple(rows[i : i + size] for rows in passes for i in range(0, len(rows), size))


def _judged(lesson: Lesson) -> Score:
    lesson.student.eval()
    return lesson.judge()
