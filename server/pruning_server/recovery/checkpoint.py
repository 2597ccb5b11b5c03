"""Copies of tensors to go back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Checkpoint:
    """The values that some tensors had; `restore` writes them back in place, so that sharing stays."""

    tensors: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Checkpoint:
        """Remembers the values of now."""
        return cls(tuple(tensors), tuple(tensor.detach().clone() for tensor in tensors))

    def restore(self) -> None:
        """Writes the values back."""
        with torch.no_grad():
            for tensor, value in zip(self.tensors, self.values, strict=True):
                tensor.copy_(value)
