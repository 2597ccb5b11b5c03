"""A student and data in memory, for tests of recovery."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from pruning_server.recovery.ports import Batch, Trainable


@dataclass
class ScriptedStudent:
    """The student port over a scripted module without state of its own."""

    module: torch.jit.ScriptModule
    exact_batch: int | None = None
    modes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> Sequence[Trainable]:
        return [Trainable(name, tensor) for name, tensor in self.module.named_parameters()]

    @property
    def statistics(self) -> Sequence[torch.Tensor]:
        return [tensor for _, tensor in self.module.named_buffers()]

    def train(self) -> None:
        self.module.train()

    def eval(self) -> None:
        self.module.eval()

    def forward(self, inputs: tuple[object, ...]) -> torch.Tensor:
        return self.module(*inputs)

    def keeping_state(self) -> AbstractContextManager[object]:
        return nullcontext()


@dataclass
class TensorData:
    """Fit data in memory, with the original's outputs."""

    inputs: torch.Tensor
    targets: torch.Tensor | None
    reference: torch.Tensor

    @property
    def samples(self) -> int:
        return len(self.inputs)

    def batch(self, rows: Sequence[int]) -> Batch:
        index = torch.tensor(list(rows))
        target = None if self.targets is None else self.targets[index]
        return Batch((self.inputs[index],), target, self.reference[index])
