"""What is removed of a model's stored tensors, as values: the contract between surgery, proof and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Removal: TypeAlias = Mapping[int, Sequence[int]]
"""Which channels go: their numbers by the number of their group in `Structure.groups`."""


@dataclass(frozen=True)
class AxisCut:
    """What is removed along one axis of one stored tensor.

    Attributes:
        tensor: its dotted name as `get_tensor` takes it; `constant N` for the N-th tensor in the model's code.
        aliases: further names of the same memory.
        axis: from 0.
        size: the axis's length before.
        kept: the coordinates that stay, ascending.
        zeroed: the removed coordinates that are zeroed in the masked model: those of consumers.
    """

    tensor: str
    aliases: tuple[str, ...]
    axis: int
    size: int
    kept: tuple[int, ...]
    zeroed: tuple[int, ...]


Cut: TypeAlias = tuple[AxisCut, ...]
"""Everything that is removed, in the model's order; each (tensor, axis) at most once. Untouched axes do not appear."""
