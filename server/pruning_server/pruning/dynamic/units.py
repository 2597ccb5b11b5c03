"""What can be switched off while a model trains, single weights or whole channels, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from pruning_server.pruning.values import PruningPlan, StructuralPlan

Gradient = Callable[[str], torch.Tensor | None]
"""The loss's gradient at a stored tensor, by name; None where none arrives."""


@dataclass(frozen=True)
class Reach:
    """How far pruning is.

    Attributes:
        removed: units that are switched off.
        units: units that can be.
        achieved: what the target's kind comes to, in its unit.
    """

    removed: int
    units: int
    achieved: float

    @property
    def sparsity(self) -> float:
        """Fraction switched off, in [0, 1]."""
        return self.removed / self.units if self.units else 0.0


class Units(Protocol):
    """Everything that can be switched off, some of which is; tensors are written by `hold`, `advance` and the like."""

    @property
    def reach(self) -> Reach:
        """How far it is now."""
        ...

    def advance(self, way: float) -> None:
        """Switches off what is missing to `way` in [0, 1] of the target, least important first; nothing comes back."""
        ...

    def reselect(self, way: float) -> None:
        """Chooses anew what is switched off at `way` of the target, and writes the zeros."""
        ...

    def exchange(self, share: float, gradient: Gradient) -> int:
        """Lets a share of what is kept make place for as much of what is off; returns how many units came back."""
        ...

    def hold(self) -> None:
        """Writes exact zeros over what is switched off."""
        ...

    def off(self) -> Mapping[str, torch.Tensor]:
        """Where zeros stand, by tensor: bool, of the tensor's shape."""
        ...

    def remember(self) -> Callable[[], None]:
        """Returns a function that goes back to what is switched off now; it writes no values."""
        ...

    def plan(self, updates: Mapping[str, torch.Tensor]) -> PruningPlan | StructuralPlan:
        """What is switched off now, as what is to be removed, with the trained full-size values by name."""
        ...


def with_notes(plan: PruningPlan | StructuralPlan, *notes: str) -> PruningPlan | StructuralPlan:
    """The plan with more notes."""
    return replace(plan, notes=(*plan.notes, *notes))
