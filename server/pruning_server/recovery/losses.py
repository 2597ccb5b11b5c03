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
from pruning_server.recovery.objective import Link, Objective, TargetForm
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
        wanted = reference
        return wanted.argmax(dim=1) if objective.form is TargetForm.LABELS else wanted
    match objective.form:
        case TargetForm.LABELS:
            return stored.reshape(len(stored)).long()
        case TargetForm.ONE_HOT:
            return stored.reshape(reference.shape).argmax(dim=1)
        case _:
            return stored.reshape(reference.shape).to(_wide(reference).dtype)


def distillation(output: torch.Tensor, reference: torch.Tensor, objective: Objective) -> torch.Tensor | None:
    """The loss against the original's output for the same inputs; None for the caller's module, whose scale is unknown.

    Source: Hinton, Vinyals and Dean, 2015, arXiv 1503.02531.
    """
    match objective.loss:
        case None:
            return None
        case Loss.CROSS_ENTROPY:
            kind = Loss.CROSS_ENTROPY
            student = as_logits(output, kind, objective.link) / DISTILLATION_TEMPERATURE
            teacher = as_logits(reference, kind, objective.link) / DISTILLATION_TEMPERATURE
            divergence = functional.kl_div(
                student.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="batchmean", log_target=True
            )
            return divergence * DISTILLATION_TEMPERATURE**2
        case Loss.BCE_WITH_LOGITS:
            wanted = as_logits(reference, objective.loss, objective.link).sigmoid()
            return BuiltinLoss(objective.loss, objective.link).mean(output, wanted)
        case _:
            return BuiltinLoss(objective.loss).mean(output, reference)


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
