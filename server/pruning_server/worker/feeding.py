"""From a dataset's arrays to a model's positional arguments and a loss's targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from pruning_server.worker.forms import InputForm

# Positions of samples in a set.
Rows: TypeAlias = Sequence[int] | np.ndarray
# Other lengths than the samples': (position of the input, axis, length) each.
Lengths: TypeAlias = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Samples:
    """A dataset in memory-mapped arrays, samples first.

    Attributes:
        name: how messages call it.
        inputs: bfloat16 as uint16.
        input_dtypes: numpy's name of each, or `bfloat16`.
    """

    name: str
    inputs: tuple[np.ndarray, ...]
    input_names: tuple[str, ...]
    input_dtypes: tuple[str, ...]
    targets: np.ndarray | None
    split: np.ndarray | None
    groups: np.ndarray | None

    def __len__(self) -> int:
        return len(self.inputs[0])


@dataclass(frozen=True)
class Feed:
    """Samples in the form that the model takes, with its scalar arguments by their positions.

    `lengths`: axes along which the samples are repeated or cut, so that indices stay in range.
    """

    samples: Samples
    forms: tuple[InputForm, ...]
    scalars: Mapping[int, object]
    device: str
    lengths: Lengths = ()

    @property
    def name(self) -> str:
        """How messages call the set."""
        return self.samples.name

    def inputs(self, rows: Rows) -> tuple[object, ...]:
        """Positional arguments of forward for these rows."""
        return place_arguments(self.tensors(rows), self.scalars)

    def tensors(self, rows: Rows) -> list[torch.Tensor]:
        """Those of the arguments that are samples."""
        index = np.asarray(rows, dtype=np.intp)
        tensors = [
            form.tensor(array[index], self.device) for form, array in zip(self.forms, self.samples.inputs, strict=True)
        ]
        for position, axis, length in self.lengths:
            tensors[position] = stretch(tensors[position], axis, length)
        return tensors

    def targets(self, rows: Rows) -> torch.Tensor | None:
        """The stored targets of these rows, or None."""
        if self.samples.targets is None:
            return None
        values = self.samples.targets[np.asarray(rows, dtype=np.intp)]
        dtype = {"f": np.float32 if values.dtype.itemsize <= 4 else np.float64}.get(values.dtype.kind, np.int64)
        return torch.from_numpy(np.array(values, dtype=dtype)).to(self.device)


def stretch(values: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    """The values repeated or cut along an axis."""
    index = torch.arange(length, device=values.device) % values.shape[axis]
    return values.index_select(axis, index)


def place_arguments(tensors: Sequence[object], scalars: Mapping[int, object]) -> tuple[object, ...]:
    """Scalars at their own positions; tensors fill the others in order."""
    remaining = iter(tensors)
    total = len(tensors) + len(scalars)
    return tuple(scalars[place] if place in scalars else next(remaining) for place in range(total))
