"""What recovery needs of the run around it, as Protocols; `worker/` fills them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """Samples as the model and the loss take them.

    Attributes:
        inputs: positional arguments of forward; tensors have the batch as their first axis.
        target: what the loss compares with, or None where the reference is the target.
        reference: the original model's output for these inputs, detached.
    """

    inputs: tuple[object, ...]
    target: torch.Tensor | None
    reference: torch.Tensor


class FitData(Protocol):
    """The samples that may be fitted on."""

    @property
    def samples(self) -> int:
        """How many."""
        ...

    def batch(self, rows: Sequence[int]) -> Batch:
        """The samples at these positions, in [0, samples)."""
        ...


# McNemar's z: up to here, the hits of two models on the same samples are a tie, but for more than two in a hundred samples:
# of a small set, chance explains more than anybody would accept.
TIE_Z = 2.0
TIE_SHARE = 0.02


@dataclass(frozen=True)
class Score:
    """How good a model is on the select split: the task's metric (higher is better) and the loss (lower is).

    Attributes:
        metric: over all samples.
        loss: their mean.
        hits: [n] 0 or 1 per sample, where the metric is their mean; None where it is not.
    """

    metric: float
    loss: float
    hits: np.ndarray | None = field(default=None, compare=False, repr=False)

    def beats(self, other: Score) -> bool:
        """Whether this one is better: by the metric, then by the loss. What is not a number beats nothing.

        Where the metric counts hits, and the hits of both differ no more than chance would let them, the loss decides:
        of two models on a few hundred samples it says more than three hits do.
        """
        if math.isnan(self.metric) or math.isnan(self.loss):
            return False
        if math.isnan(other.metric) or math.isnan(other.loss):
            return True
        if self._ties_with(other):
            return (-self.loss, self.metric) > (-other.loss, other.metric)
        return (self.metric, -self.loss) > (other.metric, -other.loss)

    def _ties_with(self, other: Score) -> bool:
        if self.hits is None or other.hits is None or len(self.hits) != len(other.hits):
            return False
        difference = self.hits - other.hits
        most = min(TIE_Z * math.sqrt(float((difference**2).sum())), TIE_SHARE * len(difference))
        return abs(float(difference.sum())) <= most


class Student(Protocol):
    """The pruned model while it is being trained."""

    @property
    def parameters(self) -> Sequence[Trainable]:
        """What the optimiser may change."""
        ...

    @property
    def statistics(self) -> Sequence[torch.Tensor]:
        """Buffers that a forward pass in training mode updates, such as running means; not a model's own state."""
        ...

    @property
    def exact_batch(self) -> int | None:
        """The only batch size that the model takes, or None."""
        ...

    def train(self) -> None:
        """Dropout on, normalization by batch."""
        ...

    def eval(self) -> None:
        """As at inference."""
        ...

    def forward(self, inputs: tuple[object, ...]) -> torch.Tensor:
        """The output that is judged."""
        ...

    def keeping_state(self) -> AbstractContextManager[object]:
        """Puts the model's own state (hidden states, counters) back on leaving; statistics stay as they became."""
        ...


class Teacher(Protocol):
    """The original model."""

    def outputs(self, inputs: Sequence[object]) -> torch.Tensor:
        """What is judged of its outputs for these arguments of the student's forward; detached, as at inference."""
        ...


@dataclass(frozen=True)
class Trainable:
    """One tensor to train, and the other tensors that share its memory: gradients may arrive at any of them."""

    name: str
    tensor: torch.Tensor
    aliases: tuple[torch.Tensor, ...] = ()


class Masks(Protocol):
    """What keeps pruned weights at zero."""

    def hold(self) -> object:
        """Writes exact zeros over every pruned weight."""
        ...


class Judge(Protocol):
    """Scores the student, in evaluation mode, on the select split."""

    def __call__(self) -> Score:
        """The score now."""
        ...


class Progress(Protocol):
    """Hears how training goes."""

    def __call__(self, *, epoch: int, epochs: int, fraction: float, metrics: dict[str, float], samples: int) -> None:
        """`fraction` of the whole recovery in [0, 1]; `samples` trained since the last call."""
        ...
