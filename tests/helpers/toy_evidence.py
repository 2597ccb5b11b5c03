"""What a caller's data would say of toys without a graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from helpers.structures import Toy
from pruning_server.graph.capture import LinearCall
from pruning_server.pruning.evidence import Part, SampleScores


def scores(metric: Sequence[float], loss: Sequence[float] | None = None) -> SampleScores:
    """One number per sample."""
    losses = np.asarray(loss if loss is not None else -np.asarray(metric))
    return SampleScores(np.asarray(metric, dtype=float), losses, np.arange(len(metric)))


class NoTrials:
    """The part of `Evidence` that judges, which most criteria must not ask for."""

    samples = 8

    def original(self, part: Part) -> SampleScores:
        """Not asked for."""
        raise AssertionError(part)

    def trial(self, removed: Any, *, part: Part = "select", renormalize: bool = False) -> SampleScores:
        """Not asked for."""
        raise AssertionError((removed, part, renormalize))

    def divergence(
        self, removed: Any, *, part: Part = "select", updates: Any = None, samples: int | None = None
    ) -> float:
        """Not asked for."""
        raise AssertionError((removed, part, updates, samples))

    def latency_ratio(self, removal: Any, *, careful: bool = False) -> float:
        """Not asked for."""
        raise AssertionError((removal, careful))


@dataclass
class ToyEvidence(NoTrials):
    """Gradients that are drawn, and activations of a chain of linear layers with ReLU, without biases.

    Attributes:
        toy: a `chain`.
        flat: tensors that no gradient reaches.
        unseen: tensors whose use no run shows.
    """

    toy: Toy
    flat: frozenset[str] = frozenset()
    unseen: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    def gradients(
        self, names: Collection[str], *, samples: int, batch_size: int = 1
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        """Three batches."""
        del samples, batch_size
        self.asked.append("gradients")
        for batch in range(3):
            yield {name: self._gradient(name, batch) for name in names}

    def _gradient(self, name: str, batch: int) -> torch.Tensor:
        tensor = self.toy.tensors[name]
        if name in self.flat:
            return torch.zeros_like(tensor)
        generator = torch.Generator().manual_seed(sum(name.encode()) * 10 + batch)
        # As of a loss that the weights' scale does not change.
        largest = tensor.abs().max().clamp(min=torch.finfo(tensor.dtype).tiny)
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype) / largest

    def calls(self, visit: Callable[[LinearCall], None], *, samples: int, names: Collection[str] | None = None) -> None:
        """Two batches of 16."""
        del samples
        self.asked.append("calls")
        layers = sorted(name for name in self.toy.tensors if name.endswith(".weight"))
        for batch in range(2):
            generator = torch.Generator().manual_seed(batch)
            kernels = [self.toy.tensors[name] for name in layers]
            value = torch.randn(16, kernels[0].shape[1], generator=generator).to(kernels[0].dtype)
            for name, kernel in zip(layers, kernels, strict=True):
                output = value @ kernel.t()
                if (names is None or name in names) and name not in self.unseen:
                    visit(LinearCall(name, None, "aten::linear", value, output, kernel, 0, 1, None))
                value = torch.relu(output)
