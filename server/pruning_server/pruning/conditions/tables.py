"""The values of a condition's features for the channels of one group, and where the condition holds for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.pruning.conditions.evaluate import Truth, Value, evaluate
from pruning_server.pruning.conditions.observing import Consumer
from pruning_server.pruning.features import FEATURES
from pruning_server.pruning.features.base import (
    ActivationFeature,
    ActivationRelation,
    Layer,
    LayerFeature,
    Relate,
    Relation,
    SliceFeature,
    SliceRelation,
)
from pruning_server.pruning.importance import slices_of
from pruning_server.spec.condition.tree import Node


@dataclass(frozen=True)
class Producer:
    """A kernel that makes the channels of a group."""

    member: Member
    layer: Layer

    def slices(self) -> torch.Tensor:
        """[channels, elements], float64."""
        return slices_of(self.member, self.layer.tensor).double().cpu()


@dataclass(frozen=True)
class GroupMembers:
    """A group as a condition sees it.

    Attributes:
        producers: the kernels that make its channels; at least one.
        consumers: what is known of the kernels that take them.
        unseen: kernels that take them in another way than a product, or were not reached.
    """

    group: ChannelGroup
    producers: tuple[Producer, ...]
    consumers: tuple[Consumer, ...]
    unseen: tuple[str, ...]


class GroupTable:
    """Feature values of one group. A channel qualifies where the condition holds for all that makes and takes it."""

    def __init__(self, members: GroupMembers, names: Sequence[str]) -> None:
        self.members = members
        self.size = members.group.size
        self._names = tuple(names)
        self._relates: dict[str, Relate] = {}
        by_channel = self._of_consumers()
        self._tables: list[dict[str, Value]] = [by_channel | self._of_producer(one) for one in members.producers]

    def relations(self, kept: torch.Tensor) -> dict[str, Relation]:
        """The features that compare channels with kept ones, by name."""
        return {name: relate(kept) for name, relate in self._relates.items()}

    def truth(self, node: Node, changing: Mapping[str, torch.Tensor]) -> Truth:
        """Where a condition is true and false: [channels] bool.

        Args:
            node: the condition, or a part of it of kind TRUTH.
            changing: [channels] values of the features that depend on what stays, or are tested.
        """
        found = [self._whole(evaluate(node, {**table, **changing})) for table in self._tables]
        true = torch.stack([one.true for one in found]).all(dim=0)
        false = torch.stack([one.false for one in found]).any(dim=0)
        return Truth(true, false)

    def values(self, name: str, changing: Mapping[str, torch.Tensor]) -> torch.Tensor | tuple[str, ...]:
        """All values of a feature: [members, channels], or the texts of the layers."""
        if name in changing:
            return changing[name].reshape(1, -1)
        found = [table[name] for table in self._tables]
        numbers = [one for one in found if isinstance(one, torch.Tensor)]
        if not numbers:
            return tuple(one for one in found if isinstance(one, str))
        return torch.cat([one.reshape(-1, one.shape[-1] if one.dim() else 1).expand(-1, self.size) for one in numbers])

    def importance(self) -> torch.Tensor:
        """[channels]: l1 relative to the mean of the layer, over all that makes a channel."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for producer in self.members.producers:
            lengths = producer.slices().abs().sum(dim=1)
            total += lengths / lengths.mean().clamp(min=1e-300)
        return total

    def _whole(self, truth: Truth) -> Truth:
        shape = torch.broadcast_shapes(truth.true.shape, (1, self.size))
        return Truth(truth.true.expand(shape).all(dim=0), truth.false.expand(shape).any(dim=0))

    def _of_consumers(self) -> dict[str, Value]:
        activations = [one.activations for one in self.members.consumers]
        unknown = torch.full((1, self.size), torch.nan, dtype=torch.float64)
        incomplete = bool(self.members.unseen) or not activations
        table: dict[str, Value] = {}
        for name in self._names:
            feature = FEATURES[name]
            if isinstance(feature, ActivationFeature):
                rows = [feature.compute(one).reshape(1, -1) for one in activations]
                table[name] = torch.cat([*rows, *([unknown] if incomplete else [])])
            elif isinstance(feature, ActivationRelation):
                self._relates[name] = _nothing(self.size) if incomplete else feature.prepare(activations)
            elif isinstance(feature, SliceRelation):
                self._relates[name] = feature.prepare([one.slices() for one in self.members.producers])
        return table

    def _of_producer(self, producer: Producer) -> dict[str, Value]:
        table: dict[str, Value] = {}
        for name in self._names:
            feature = FEATURES[name]
            if isinstance(feature, SliceFeature):
                table[name] = feature.compute(producer.slices())
            elif isinstance(feature, LayerFeature):
                value = feature.compute(producer.layer)
                table[name] = value if isinstance(value, str) else torch.tensor(value, dtype=torch.float64)
        return table


def _nothing(size: int) -> Relate:
    def relate(_: torch.Tensor) -> Relation:
        return Relation(torch.full((size,), torch.nan, dtype=torch.float64), None)

    return relate
