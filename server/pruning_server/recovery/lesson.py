"""Everything that training works with, and one pass of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from pruning_server.recovery.losses import LossFunction, distillation
from pruning_server.recovery.objective import Objective, TargetForm
from pruning_server.recovery.ports import Batch, FitData, Judge, Masks, Progress, Student, Teacher
from pruning_server.recovery.reconstruction import Pair
from pruning_server.recovery.schedule import TrainingPlan
from pruning_server.spec.request import Loss

# Soft answers say more than a label does, and more to a small set; of other losses both terms are of one kind.
CLASSIFICATION_DISTILLATION_WEIGHT, DISTILLATION_WEIGHT = 0.9, 0.5


def _no_clock() -> float:
    return 0.0


class NoGradientError(Exception):
    """No gradient reaches the weights: the model computes its output without one."""


@dataclass(frozen=True)
class Lesson:
    """Everything that recovery works with.

    Attributes:
        pair: the original and the pruned model, for closed-form reconstruction; None leaves that out.
        teacher: the original, to be asked about variants of the samples; None: samples are shown as they are.
        all_data: fit and select together, for a last training that nothing is chosen by; None leaves that out.
        autocast: the half precision in which a GPU computes what it may while training; None: as the weights are.
        seconds: the run's clock.
    """

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
    pair: Pair | None = None
    teacher: Teacher | None = None
    all_data: FitData | None = None
    autocast: torch.dtype | None = None
    seconds: Callable[[], float] = _no_clock

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

    def forward(self, inputs: tuple[object, ...]) -> torch.Tensor:
        """The student's output in training, in mixed precision where that was asked for."""
        if self.autocast is None:
            return self.student.forward(inputs)
        device = next((t.tensor.device.type for t in self.student.parameters), "cpu")
        with torch.autocast(device, dtype=self.autocast):
            return self.student.forward(inputs)

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
    """The loss to lower: the caller's, and distillation from the original where that adds something."""
    target = batch.reference if batch.target is None else batch.target
    loss = lesson.loss.mean(output, target)
    # Where the original's output is the target already, distillation would count it twice.
    if lesson.objective.form is TargetForm.NONE or batch.target is None:
        return loss
    soft = distillation(output, batch.reference, lesson.objective, batch.target)
    classifies = lesson.objective.loss is Loss.CROSS_ENTROPY
    weight = CLASSIFICATION_DISTILLATION_WEIGHT if classifies else DISTILLATION_WEIGHT
    return loss if soft is None else (1 - weight) * loss + weight * soft


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
        output = lesson.forward(batch.inputs)
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
