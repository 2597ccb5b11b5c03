"""Copies of tensors to go back to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Checkpoint:
    """The values that some tensors had; `restore` writes them back in place, so that sharing stays.

    The tensors are looked up again then: a model may have put others in their places, as scripted batch normalization
    does with its counter.
    """

    read: Callable[[], Sequence[torch.Tensor]]
    values: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, read: Callable[[], Sequence[torch.Tensor]]) -> Checkpoint:
        """Remembers the values that the tensors have now."""
        return cls(read, tuple(tensor.detach().clone() for tensor in read()))

    def restore(self) -> None:
        """Writes the values back."""
        with torch.no_grad():
            for tensor, value in zip(self.read(), self.values, strict=True):
                tensor.copy_(value)
