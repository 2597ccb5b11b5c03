"""The optimiser: AdamW with float32 master copies for half precision, and pruned weights held at zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning_server.recovery.ports import Masks, Trainable

MAX_GRADIENT_NORM = 1.0
# Gradients of float16 weights underflow without it (Micikevicius et al., 2018, arXiv 1710.03740).
HALF_LOSS_SCALE = 1024.0


class MaskedOptimizer:
    """AdamW steps on what may be trained; after each, pruned weights are exactly zero again.

    Momentum may build up for a pruned weight, but can never reach it: zeros are written last.

    Source: Loshchilov and Hutter, 2019, arXiv 1711.05101.
    """

    def __init__(self, trainables: Sequence[Trainable], masks: Masks, weight_decay: float) -> None:
        self._trainables = tuple(trainables)
        self._masks = masks
        self._masters = [_master(trainable.tensor) for trainable in trainables]
        self._scale = HALF_LOSS_SCALE if any(t.tensor.dtype == torch.float16 for t in trainables) else 1.0
        self._optimizer = torch.optim.AdamW(self._masters, lr=0.0, weight_decay=weight_decay)

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
        for trainable, master in zip(self._trainables, self._masters, strict=True):
            master.grad = _gradient(trainable, master, self._scale)
        norm = torch.nn.utils.clip_grad_norm_(self._masters, MAX_GRADIENT_NORM)
        if not bool(torch.isfinite(norm)):
            overflow = self._scale > 1.0
            self._scale = max(1.0, self._scale / 4)
            return overflow
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        with torch.no_grad():
            for trainable, master in zip(self._trainables, self._masters, strict=True):
                if master is not trainable.tensor:
                    trainable.tensor.copy_(master)
        self._masks.hold()
        return True


def _master(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype in {torch.float32, torch.float64}:
        return tensor
    return tensor.detach().float().requires_grad_()


def _gradient(trainable: Trainable, master: torch.Tensor, scale: float) -> torch.Tensor | None:
    """The gradient of the memory: the sum of what arrived at each tensor that shares it."""
    found = [t.grad for t in (trainable.tensor, *trainable.aliases) if t.grad is not None]
    if not found:
        return None
    total = found[0].to(master.dtype)
    for gradient in found[1:]:
        total = total + gradient.to(master.dtype)
    return total / scale if scale != 1.0 else total
