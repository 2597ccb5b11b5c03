"""What goes into a plan and what comes out, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pruning_server.graph.values import WeightKind
from pruning_server.spec.request import Granularity, TargetKind


@dataclass(frozen=True)
class ScoredInput:
    """A weight as a strategy sees it; the tensor is read, never written."""

    name: str
    layer: str
    kind: WeightKind
    tensor: torch.Tensor


@dataclass(frozen=True)
class Mask:
    """Which elements of one stored tensor are removed: `removed` is a bool tensor of its shape, True = becomes 0."""

    name: str
    removed: torch.Tensor

    @property
    def removed_count(self) -> int:
        """Number of elements that become 0."""
        return int(self.removed.sum().item())

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.removed.numel()

    @property
    def sparsity(self) -> float:
        """Fraction removed, in [0, 1]."""
        return self.removed_count / self.numel if self.numel else 0.0


@dataclass(frozen=True)
class PruningPlan:
    """The masks by weight name, one per prunable weight, and notes for the report."""

    masks: Mapping[str, Mask]
    notes: tuple[str, ...]

    @property
    def prunable_weights(self) -> int:
        """Number of elements that could have been removed."""
        return sum(mask.numel for mask in self.masks.values())

    @property
    def removed_weights(self) -> int:
        """Number of elements that become 0."""
        return sum(mask.removed_count for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable elements that is removed, in [0, 1]."""
        return self.removed_weights / self.prunable_weights if self.prunable_weights else 0.0


@dataclass(frozen=True)
class CriterionInfo:
    """A registered criterion and where it comes from (authors, year, arXiv)."""

    name: str
    summary: str
    source: str


@dataclass(frozen=True)
class StrategyInfo:
    """A strategy of the API; `available` False: this version does not have it."""

    name: str
    summary: str
    available: bool
    granularities: tuple[Granularity, ...] = ()
    targets: tuple[TargetKind, ...] = ()
    criteria: tuple[CriterionInfo, ...] = ()
