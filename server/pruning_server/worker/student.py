"""The pruned model while it is trained: what may change, what is state, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from pruning_server.graph.modules import get_tensor
from pruning_server.graph.values import Weight
from pruning_server.recovery.ports import Trainable
from pruning_server.worker.running import Subject

TRAINABLE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class ModuleStudent:
    """Fills `recovery.ports.Student` over a loaded module.

    Attributes:
        subject: the module and how it is called, with statistics kept.
        parameters: what the optimiser may change.
        statistic_names: buffers that training passes update and that are not the model's own state.
    """

    subject: Subject
    parameters: Sequence[Trainable]
    statistic_names: tuple[str, ...]

    @property
    def statistics(self) -> Sequence[torch.Tensor]:
        """The buffers themselves."""
        return [get_tensor(self.subject.module, name) for name in self.statistic_names]

    @property
    def exact_batch(self) -> int | None:
        """The only batch size that the model takes."""
        return self.subject.rule.exact_batch

    def train(self) -> None:
        """Dropout on, normalization by batch."""
        self.subject.module.train()

    def eval(self) -> None:
        """As at inference."""
        self.subject.module.eval()

    def forward(self, inputs: tuple[object, ...]) -> torch.Tensor:
        """The judged output."""
        return self.subject.output(inputs)

    def keeping_state(self) -> AbstractContextManager[object]:
        """Puts the model's state back on leaving, and keeps the statistics of the pass."""
        return self.subject.state


def find_trainables(
    module: torch.jit.ScriptModule, weights: Sequence[Weight], *, frozen_archive: bool
) -> tuple[tuple[Trainable, ...], tuple[str, ...]]:
    """What may be trained, each memory once, and notes.

    Parameters that the owner froze stay frozen. Where every one is, which is how models are often exported, or where
    there are none, whatever is a weight is trained, as are the thawed constants of a frozen archive.

    Args:
        module: the module to be trained.
        weights: everything in it that the graph uses as a weight, biases and norms included.
        frozen_archive: whether its weights were constants.
    """
    parameters = dict(module.named_parameters())
    held = {weight.name: get_tensor(module, weight.name) for weight in weights if weight.name not in parameters}
    wanted: dict[str, torch.Tensor] = {name: p for name, p in parameters.items() if p.requires_grad}
    notes: tuple[str, ...] = ()
    if frozen_archive:
        wanted |= held
    elif not wanted:
        wanted = {**parameters, **({} if parameters else held)}
        notes = ("Nothing in the archive requires a gradient; all of its weights were fine-tuned.",) if wanted else ()
    aliases = {weight.name: weight.aliases for weight in weights}
    trainables: dict[tuple[object, ...], Trainable] = {}
    for name, tensor in wanted.items():
        key = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if tensor.dtype not in TRAINABLE_DTYPES or not tensor.is_leaf or not tensor.numel() or key in trainables:
            continue
        others = [get_tensor(module, alias) for alias in aliases.get(name, ())]
        distinct = tuple(other for other in others if other is not tensor and other.shape == tensor.shape)
        for one in (tensor, *distinct):
            one.requires_grad_()
        trainables[key] = Trainable(name=name, tensor=tensor, aliases=distinct)
    return tuple(trainables.values()), notes


def find_statistics(module: torch.jit.ScriptModule, state_names: frozenset[str]) -> tuple[str, ...]:
    """Names of the buffers that training may update."""
    return tuple(name for name, _ in module.named_buffers() if name not in state_names)
