"""The optimisers: AdamW or momentum, with float32 master copies for half precision, and pruned weights held at zero."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pruning_server.recovery.ports import Masks, Trainable

MAX_GRADIENT_NORM = 1.0
BETA_MEAN, BETA_SQUARE, EPSILON = 0.9, 0.999, 1e-8
MOMENTUM = 0.9
# Gradients of float16 weights underflow without it (Micikevicius et al., 2018, arXiv 1710.03740).
HALF_LOSS_SCALE = 1024.0


class Rule(enum.StrEnum):
    """How a gradient becomes a step."""

    ADAMW = "adamw"
    MOMENTUM = "momentum"  # stochastic gradient descent with Nesterov's momentum


@dataclass
class _Moments:
    """Running mean and square of one tensor's gradient."""

    mean: torch.Tensor
    square: torch.Tensor
    steps: int = 0


class MaskedOptimizer:
    """Steps on what may be trained; after each, pruned weights are exactly zero again.

    Momentum may build up for a pruned weight, but can never reach it: zeros are written last. The update is written out
    here because torch.optim takes seconds to import, more than most small models take to train.

    Sources: Loshchilov and Hutter, 2019, arXiv 1711.05101 (AdamW); Sutskever, Martens, Dahl and Hinton, 2013, ICML
    (momentum).
    """

    def __init__(
        self,
        trainables: Sequence[Trainable],
        masks: Masks,
        weight_decay: float,
        rule: Rule = Rule.ADAMW,
        *,
        half: bool = False,
    ) -> None:
        self._trainables = tuple(trainables)
        self._masks = masks
        self._weight_decay = weight_decay
        self._update = self._adamw if rule is Rule.ADAMW else self._momentum
        self._masters = [_master(trainable.tensor) for trainable in trainables]
        self._moments = [_Moments(torch.zeros_like(m), torch.zeros_like(m)) for m in self._masters]
        half = half or any(t.tensor.dtype == torch.float16 for t in trainables)
        self._scale = HALF_LOSS_SCALE if half else 1.0

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for trainable in self._trainables:
            for tensor in (trainable.tensor, *trainable.aliases):
                tensor.grad = None

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the loss's gradients."""
        (loss * self._scale).backward()

    def step(self, learning_rate: float) -> bool:
        """Takes a step, or none and returns False where a gradient is not finite.

        An overflow of the loss scale alone only lowers the scale.
        """
        pairs = zip(self._trainables, self._masters, strict=True)
        gradients = [_gradient(trainable, master, self._scale) for trainable, master in pairs]
        norm = _norm(gradients)
        if not bool(torch.isfinite(norm)):
            overflow = self._scale > 1.0
            self._scale = max(1.0, self._scale / 4)
            return overflow
        clip = min(1.0, MAX_GRADIENT_NORM / (float(norm) + EPSILON))
        with torch.no_grad():
            for trainable, master, gradient, moments in zip(
                self._trainables, self._masters, gradients, self._moments, strict=True
            ):
                if gradient is not None:
                    self._update(master, gradient * clip, moments, learning_rate)
                    if master is not trainable.tensor:
                        trainable.tensor.copy_(master)
        self._masks.hold()
        return True

    def _momentum(self, master: torch.Tensor, gradient: torch.Tensor, moments: _Moments, rate: float) -> None:
        step = gradient.add(master, alpha=self._weight_decay)
        moments.mean.mul_(MOMENTUM).add_(step)
        master.add_(step.add_(moments.mean, alpha=MOMENTUM), alpha=-rate)

    def _adamw(self, master: torch.Tensor, gradient: torch.Tensor, moments: _Moments, rate: float) -> None:
        moments.steps += 1
        moments.mean.lerp_(gradient, 1 - BETA_MEAN)
        moments.square.mul_(BETA_SQUARE).addcmul_(gradient, gradient, value=1 - BETA_SQUARE)
        correction = 1 - BETA_MEAN**moments.steps
        spread = (moments.square / (1 - BETA_SQUARE**moments.steps)).sqrt_().add_(EPSILON)
        master.mul_(1 - rate * self._weight_decay)
        master.addcdiv_(moments.mean, spread, value=-rate / correction)


def _norm(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Of all gradients together; 0 where there are none."""
    norms = [torch.linalg.vector_norm(gradient).double() for gradient in gradients if gradient is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _master(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype in {torch.float32, torch.float64}:
        return tensor
    return tensor.detach().float()


def _gradient(trainable: Trainable, master: torch.Tensor, scale: float) -> torch.Tensor | None:
    """The gradient of the memory: the sum of what arrived at each tensor that shares it."""
    found = [t.grad for t in (trainable.tensor, *trainable.aliases) if t.grad is not None]
    if not found:
        return None
    total = found[0].to(master.dtype)
    for gradient in found[1:]:
        total = total + gradient.to(master.dtype)
    return total / scale if scale != 1.0 else total
