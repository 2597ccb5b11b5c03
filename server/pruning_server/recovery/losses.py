"""Losses: the four that ship, the caller's TorchScript module, and distillation from the original.

Outputs and targets are tensors with the samples first. Half precision is computed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from pruning_server.errors import JobFailureError, Reason
from pruning_server.recovery.objective import IGNORED_LABEL, Link, Objective, TargetForm, without_axis
from pruning_server.recovery.raised import sentence
from pruning_server.spec.request import Loss

# Hinton, Vinyals and Dean, 2015, arXiv 1503.02531: softened targets; the gradients' size is kept by the square of T.
DISTILLATION_TEMPERATURE = 4.0
SMALLEST_PROBABILITY = 1e-7


class LossFunction(Protocol):
    """A loss over a batch."""

    def mean(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The scalar that training lowers."""
        ...

    def per_sample(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[N], one loss for each sample."""
        ...


@dataclass(frozen=True)
class BuiltinLoss:
    """A loss that ships with the service; `link` says whether outputs are logits or probabilities."""

    kind: Loss
    link: Link = Link.IDENTITY

    def mean(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean over samples and, where there are several, over outputs."""
        return self.per_sample(output, target).mean()

    def per_sample(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[N]; averaged over the outputs of a sample."""
        values = as_logits(output, self.kind, self.link)
        if self.kind is Loss.CROSS_ENTROPY:
            return functional.cross_entropy(values, target, reduction="none")
        values = values.reshape(len(values), -1)
        wanted = target.to(values.dtype).reshape(values.shape)
        match self.kind:
            case Loss.BCE_WITH_LOGITS:
                losses = functional.binary_cross_entropy_with_logits(values, wanted, reduction="none")
            case Loss.L1:
                losses = (values - wanted).abs()
            case _:
                losses = (values - wanted).square()
        return losses.mean(dim=1)


@dataclass(frozen=True)
class ElementLoss:
    """Cross entropy of every pixel or token whose label is not -100; `class_axis` None: one yes or no for each."""

    class_axis: int | None
    link: Link = Link.IDENTITY

    def mean(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The mean over all elements that count: long samples weigh more."""
        losses, counted = self.per_element(output, target)
        return losses.sum() / counted.sum().clamp_min(1)

    def per_sample(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[N]; averaged over the elements of a sample that count, 0 where none does."""
        losses, counted = self.per_element(output, target)
        return losses.sum(dim=1) / counted.sum(dim=1).clamp_min(1)

    def per_element(self, output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, elements] losses, 0 where they do not count, and whether they do."""
        wanted = target.reshape(len(target), -1)
        counted = wanted != IGNORED_LABEL
        if self.class_axis is not None:
            scores = as_logits(classes_first(output, self.class_axis), Loss.CROSS_ENTROPY, self.link)
            return functional.cross_entropy(scores, wanted, reduction="none", ignore_index=IGNORED_LABEL), counted
        values = as_logits(output, Loss.BCE_WITH_LOGITS, self.link).reshape(wanted.shape)
        # Not multiplied by 0, as an infinite loss would become no number.
        losses = functional.binary_cross_entropy_with_logits(values, wanted.clamp_min(0).to(values), reduction="none")
        return losses.masked_fill(~counted, 0.0), counted


@dataclass(frozen=True)
class ModuleLoss:
    """The caller's module, called as loss(output, target)."""

    module: torch.nn.Module

    def mean(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What the module returns for the batch.

        Raises:
            JobFailureError: it raised, or returned something else than a scalar (LOSS_UNSUITABLE).
        """
        try:
            value = self.module(output, target)
        except MemoryError:
            raise
        except Exception as error:  # the caller's own code: it can raise anything
            raise JobFailureError(Reason.LOSS_UNSUITABLE, _module_raised(error, output, target)) from error
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.is_floating_point():
            shown = f"a {value.dtype} tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value)
            text = f"The loss module must return a floating-point scalar, a tensor of one number; it returned {shown}."
            raise JobFailureError(Reason.LOSS_UNSUITABLE, text)
        return value.reshape(())

    def per_sample(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[N]: the module called on each sample alone."""
        return torch.stack([self.mean(output[i : i + 1], target[i : i + 1]).detach() for i in range(len(output))])


def build_loss(objective: Objective, module: torch.nn.Module | None) -> LossFunction:
    """The loss that the objective names; `module` is the caller's, in evaluation mode."""
    if objective.loss is None:
        if module is None:
            raise JobFailureError(Reason.LOSS_UNSUITABLE, "The loss module is missing.")
        return ModuleLoss(module)
    if objective.form is TargetForm.ELEMENTS:
        return ElementLoss(objective.class_axis, objective.link)
    return BuiltinLoss(objective.loss, objective.link)


def check_loss(loss: LossFunction, output: torch.Tensor, target: torch.Tensor) -> None:
    """Tries the loss on the original's output.

    Raises:
        JobFailureError: it raises or returns no scalar (LOSS_UNSUITABLE), or a value that is not finite
            (LOSS_NOT_FINITE).
    """
    value = float(loss.mean(output, target).detach())
    if not math.isfinite(value):
        text = (
            f"The loss of the original model is {value} on the first samples. Check that outputs, targets and loss "
            "belong together: cross_entropy and bce_with_logits take logits."
        )
        raise JobFailureError(Reason.LOSS_NOT_FINITE, text)


def shape_target(stored: torch.Tensor | None, reference: torch.Tensor, objective: Objective) -> torch.Tensor:
    """The stored targets [N, ...] as the loss takes them; where there are none, the original's output."""
    if objective.form is TargetForm.NONE or stored is None:
        return _own_answer(reference, objective)
    match objective.form:
        case TargetForm.LABELS:
            return stored.reshape(len(stored)).long()
        case TargetForm.ONE_HOT:
            return stored.reshape(reference.shape).argmax(dim=1)
        case TargetForm.ELEMENTS:
            shape = (len(stored), *without_axis(tuple(reference.shape[1:]), objective.class_axis))
            labels = stored.reshape(shape).long()
            return labels.masked_fill(torch.isin(labels, labels.new_tensor(objective.ignored)), IGNORED_LABEL)
        case _:
            return stored.reshape(reference.shape).to(_wide(reference).dtype)


def _own_answer(reference: torch.Tensor, objective: Objective) -> torch.Tensor:
    """The original's output as a target: what it chooses where the loss wants a choice."""
    if objective.form is TargetForm.LABELS:
        return reference.argmax(dim=1)
    if objective.loss is Loss.BCE_WITH_LOGITS:
        return (as_logits(reference, objective.loss, objective.link) > 0).to(_wide(reference).dtype)
    return reference


def distillation(
    output: torch.Tensor, reference: torch.Tensor, objective: Objective, target: torch.Tensor | None = None
) -> torch.Tensor | None:
    """The loss against the original's output for the same inputs; None for the caller's module, whose scale is unknown.

    Where `target` has one label for each pixel or token, those that do not count are left out.
    Source: Hinton, Vinyals and Dean, 2015, arXiv 1503.02531.
    """
    match objective.loss:
        case None:
            return None
        case Loss.CROSS_ENTROPY:
            axis = objective.class_axis or 1
            student = _softened(output, objective.link, axis)
            teacher = _softened(reference, objective.link, axis)
            divergence = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
            return _mean_of_counted(divergence, objective, target) * DISTILLATION_TEMPERATURE**2
        case Loss.BCE_WITH_LOGITS:
            wanted = as_logits(reference, objective.loss, objective.link).sigmoid()
            given = as_logits(output, objective.loss, objective.link)
            losses = functional.binary_cross_entropy_with_logits(given, wanted, reduction="none")
            return _mean_of_counted(losses.reshape(len(losses), -1), objective, target)
        case _:
            return BuiltinLoss(objective.loss).mean(output, reference)


def _softened(output: torch.Tensor, link: Link, class_axis: int) -> torch.Tensor:
    """Log-probabilities [N, C, elements] at the temperature."""
    logits = as_logits(classes_first(output, class_axis), Loss.CROSS_ENTROPY, link)
    return (logits / DISTILLATION_TEMPERATURE).log_softmax(dim=1)


def _mean_of_counted(losses: torch.Tensor, objective: Objective, target: torch.Tensor | None) -> torch.Tensor:
    """The mean of [N, elements] losses over the elements whose labels count."""
    if objective.form is not TargetForm.ELEMENTS or target is None:
        return losses.mean()
    counted = target.reshape(losses.shape) != IGNORED_LABEL
    return losses.masked_fill(~counted, 0.0).sum() / counted.sum().clamp_min(1)


def classes_first(output: torch.Tensor, class_axis: int) -> torch.Tensor:
    """[N, C, elements] of outputs whose classes are numbered along `class_axis`."""
    moved = output.movedim(class_axis, 1)
    return moved.reshape(len(moved), moved.shape[1], -1)


def as_logits(output: torch.Tensor, kind: Loss, link: Link) -> torch.Tensor:
    """Outputs as the loss takes them: in float32 or wider, probabilities turned back into logits."""
    values = _wide(output)
    if link is Link.IDENTITY:
        return values
    if kind is Loss.CROSS_ENTROPY:
        return values.clamp_min(SMALLEST_PROBABILITY).log()
    probabilities = values.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return probabilities.log() - (-probabilities).log1p()


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype in {torch.float32, torch.float64} else values.float()


def _module_raised(error: Exception, output: torch.Tensor, target: torch.Tensor) -> str:
    return (
        f"The loss module raised for output {output.dtype} {list(output.shape)} and target {target.dtype} "
        f"{list(target.shape)}: {sentence(error)} It is called as loss(output, target) and must return a scalar."
    )
