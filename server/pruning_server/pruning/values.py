"""What goes into a plan and what comes out, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.surgery.cut import Removal
from pruning_server.graph.values import FrozenUse, WeightKind
from pruning_server.spec.condition import FeatureInfo
from pruning_server.spec.report_strategy import CriterionChoice, StrategyDetails
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
    """Which weights become 0.

    Attributes:
        masks: by weight name, one per prunable weight.
        notes: for the report.
        updates: new values of stored tensors by name, in their full shape, written before the masks.
        details: what the strategy has to tell, for the report.
        choice: of the criterion `auto`.
        frozen: weights that the plan leaves whole although they could be pruned, with the reason.
    """

    masks: Mapping[str, Mask]
    notes: tuple[str, ...]
    updates: Mapping[str, torch.Tensor] = field(default_factory=dict)
    details: StrategyDetails | None = None
    choice: CriterionChoice | None = None
    frozen: tuple[FrozenUse, ...] = ()

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


class Cost(Protocol):
    """What a model takes: its parameters, and its MACs per run where they are known."""

    @property
    def parameters(self) -> int:
        """Number of elements of all parameters."""
        ...

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one run on the samples."""
        ...


@dataclass(frozen=True)
class StructuralInput:
    """A model as a strategy for channels and heads sees it.

    Attributes:
        groups: everything that can be removed; a removal names groups by their number here.
        tensors: a stored tensor by name; it is read, never written. A `KeyError` means that the tensor stands in the code.
        scored: names of the weights whose elements count, e.g. kernels; no buffer's.
        cost: what the model would take after a removal; more removed is never more.
        frozen: why the rest stays, for messages.
        scales: finds the names of the learned scales of normalizations, for criteria that go by them.
    """

    groups: Sequence[ChannelGroup]
    tensors: Callable[[str], torch.Tensor]
    scored: frozenset[str]
    cost: Callable[[Removal], Cost]
    frozen: tuple[FrozenUse, ...] = ()
    scales: Callable[[], frozenset[str]] = frozenset


@dataclass(frozen=True)
class StructuralPlan:
    """Which channels go.

    Attributes:
        removal: channels by group number, both ascending; groups that lose none are left out.
        removable: number of channels by group number, of the groups that could have lost some: a head is one channel, and
            so is everything else that only goes at once.
        achieved: what the target's kind comes to, in its unit.
        frozen: groups that the request or the lack of weights keeps, with the reason.
        notes: for the report.
        updates: new values of stored tensors by name, in their full shape, written before channels are removed.
        details: what the strategy has to tell, for the report.
        choice: of the criterion `auto`.
    """

    removal: Removal
    removable: Mapping[int, int]
    achieved: float
    frozen: tuple[FrozenUse, ...]
    notes: tuple[str, ...]
    updates: Mapping[str, torch.Tensor] = field(default_factory=dict)
    details: StrategyDetails | None = None
    choice: CriterionChoice | None = None

    @property
    def removed_counts(self) -> dict[int, int]:
        """Channels that go, by group number."""
        return {number: len(self.removal.get(number, ())) for number in self.removable}

    @property
    def kept_counts(self) -> dict[int, int]:
        """Channels that stay, by group number."""
        return {number: size - len(self.removal.get(number, ())) for number, size in self.removable.items()}

    @property
    def removable_channels(self) -> int:
        """Number of channels of all groups that could have lost some."""
        return sum(self.removable.values())

    @property
    def removed_channels(self) -> int:
        """Number of channels that go."""
        return sum(len(channels) for channels in self.removal.values())

    @property
    def sparsity(self) -> float:
        """Fraction of the removable channels that is removed, in [0, 1]."""
        return self.removed_channels / self.removable_channels if self.removable_channels else 0.0


@dataclass(frozen=True)
class CriterionInfo:
    """A registered criterion, where it comes from (authors, year, arXiv), and what it can be asked for.

    `needs`: what it asks of the data: none, gradients, activations or trials.
    """

    name: str
    summary: str
    source: str
    granularities: tuple[Granularity, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class ScheduleInfo:
    """A registered schedule of dynamic pruning, where it comes from, and what it can be asked for."""

    name: str
    summary: str
    source: str
    granularities: tuple[Granularity, ...] = ()


@dataclass(frozen=True)
class StrategyInfo:
    """A strategy of the API; `available` False: this version does not have it."""

    name: str
    summary: str
    available: bool
    granularities: tuple[Granularity, ...] = ()
    targets: tuple[TargetKind, ...] = ()
    criteria: tuple[CriterionInfo, ...] = ()
    schedules: tuple[ScheduleInfo, ...] = ()
    features: tuple[FeatureInfo, ...] = ()
