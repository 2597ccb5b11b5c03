"""Everything that training works with, and one pass of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from pruning_server.recovery.losses import LossFunction, distillation
from pruning_server.recovery.objective import Objective, TargetForm
from pruning_server.recovery.ports import Batch, FitData, Judge, Masks, Progress, Student
from pruning_server.recovery.schedule import TrainingPlan

DISTILLATION_WEIGHT = 0.5


class NoGradientError(Exception):
    """No gradient reaches the weights: the model computes its output without one."""


@dataclass(frozen=True)
class Lesson:
    """Everything that training works with."""

    student: Student
    data: FitData
    judge: Judge
    masks: Masks
    objective: Objective
    loss: LossFunction
    plan: TrainingPlan
    progress: Progress
    training_mode: bool = True
    keeps_overwritten: bool = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """One pass forward and backward: the student's state is put back after it.

        Models that write their state in place overwrite what the gradient still needs; `keeps_overwritten` makes torch
        keep copies of that, which is slow.
        """
        with ExitStack() as stack:
            if self.keeps_overwritten:
                stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
            stack.enter_context(self.student.keeping_state())
            yield

    def enter_training(self) -> None:
        """Puts the student into the mode in which it is trained.

        A model that cannot run in training mode can still be trained as it runs at inference: without dropout, and with
        normalization as it is.
        """
        if self.training_mode:
            self.student.train()
        else:
            self.student.eval()

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What training changes."""
        return (*(trainable.tensor for trainable in self.student.parameters), *self.student.statistics)


def blended(lesson: Lesson, output: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The loss to lower: the caller's, and half of it distillation from the original where that adds something."""
    target = batch.reference if batch.target is None else batch.target
    loss = lesson.loss.mean(output, target)
    # Where the original's output is the target already, distillation would count it twice.
    if lesson.objective.form is TargetForm.NONE or batch.target is None:
        return loss
    soft = distillation(output, batch.reference, lesson.objective)
    return loss if soft is None else (1 - DISTILLATION_WEIGHT) * loss + DISTILLATION_WEIGHT * soft


def require_gradient(lesson: Lesson) -> None:
    """Tries one small pass in training; leaves gradients cleared, and what the pass did to the statistics.

    Raises:
        NoGradientError: no gradient reaches any weight.
    """
    # Two samples, as batch normalization cannot train on one.
    size = lesson.student.exact_batch or min(2, lesson.data.samples)
    if size > lesson.data.samples:
        raise NoGradientError("the fit split has fewer samples than the model's only batch size.")
    batch = lesson.data.batch(range(size))
    lesson.enter_training()
    with lesson.passing():
        output = lesson.student.forward(batch.inputs)
        if not output.requires_grad:
            raise NoGradientError("no gradient flows from the model's output to its weights.")
        loss = blended(lesson, output, batch)
        if not loss.requires_grad:
            raise NoGradientError("no gradient flows from the loss to the model's output.")
        loss.backward()
    reached = any(
        tensor.grad is not None
        for trainable in lesson.student.parameters
        for tensor in (trainable.tensor, *trainable.aliases)
    )
    for trainable in lesson.student.parameters:
        for tensor in (trainable.tensor, *trainable.aliases):
            tensor.grad = None
    if not reached:
        raise NoGradientError("no gradient flows from the model's output to its weights.")
