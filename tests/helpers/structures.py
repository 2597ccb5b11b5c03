"""Models for structural planning without a graph: stored tensors, the groups of their channels, and what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pruning_server.graph.coupling.groups import ChannelGroup, Member
from pruning_server.pruning.values import StructuralInput


@dataclass(frozen=True)
class Cost:
    parameters: int
    macs: int | None


@dataclass
class Toy:
    """Named tensors and groups; a cost counts elements that stay, and MACs as `macs_per_element` times those."""

    tensors: dict[str, torch.Tensor]
    groups: tuple[ChannelGroup, ...]
    macs_per_element: int | None = 10
    asked: list[Mapping[int, Sequence[int]]] = field(default_factory=list)

    def lengths(self, name: str, axis: int) -> int:
        return self.tensors[name].shape[axis]

    def shapes(self, removal: Mapping[int, Sequence[int]]) -> dict[str, list[int]]:
        """What stays; every removed coordinate is counted once."""
        gone: dict[tuple[str, int], set[int]] = {}
        for number, channels in removal.items():
            for member in self.groups[number].members:
                place = gone.setdefault((member.tensor, member.axis), set())
                for channel in channels:
                    assert not place & set(member.coordinates[channel])
                    place.update(member.coordinates[channel])
        return {
            name: [size - len(gone.get((name, axis), ())) for axis, size in enumerate(tensor.shape)]
            for name, tensor in self.tensors.items()
        }

    def cost(self, removal: Mapping[int, Sequence[int]]) -> Cost:
        self.asked.append(removal)
        parameters = sum(math.prod(shape) for shape in self.shapes(removal).values())
        return Cost(parameters, None if self.macs_per_element is None else parameters * self.macs_per_element)

    def input(self) -> StructuralInput:
        scored = frozenset(name for name in self.tensors if name.endswith("weight"))
        return StructuralInput(self.groups, self.tensors.__getitem__, scored, self.cost)


def each(count: int, start: int = 0, width: int = 1) -> tuple[tuple[int, ...], ...]:
    """`count` channels of `width` neighbouring coordinates."""
    return tuple(tuple(range(start + width * one, start + width * (one + 1))) for one in range(count))


def chain(sizes: Sequence[int], *, seed: int = 0, kind: str = "channel", width: int = 1, **kinds: object) -> Toy:
    """Linear layers `0`, `1`, ...; all but the first and the last of `sizes` can be pruned, `width` features at a time."""
    generator = torch.Generator().manual_seed(seed)
    features = [sizes[0], *(size * width for size in sizes[1:-1]), sizes[-1]]
    tensors: dict[str, torch.Tensor] = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(features)):
        scale = 10.0**layer
        tensors[f"{layer}.weight"] = torch.randn(outputs, inputs, generator=generator) * scale
        tensors[f"{layer}.bias"] = torch.randn(outputs, generator=generator)
        tensors[f"{layer}.steps"] = torch.arange(outputs)
    groups = tuple(
        ChannelGroup(
            size,
            (
                Member(f"{layer}.weight", (), 0, consumer=False, coordinates=each(size, width=width)),
                Member(f"{layer}.bias", (), 0, consumer=False, coordinates=each(size, width=width)),
                Member(f"{layer}.steps", (), 0, consumer=False, coordinates=each(size, width=width)),
                Member(f"{layer + 1}.weight", (), 1, consumer=True, coordinates=each(size, width=width)),
            ),
            kind,
        )
        for layer, size in enumerate(sizes[1:-1])
    )
    return Toy(tensors, groups, **kinds)


def shuffled(count: int, *, seed: int = 0) -> Toy:
    """Two layers whose common axis falls apart into groups of one channel."""
    toy = chain([3, count, 2], seed=seed)
    groups = tuple(
        ChannelGroup(
            1,
            tuple(
                Member(
                    one.tensor, (), one.axis, consumer=one.consumer, coordinates=one.coordinates[channel : channel + 1]
                )
                for one in toy.groups[0].members
            ),
        )
        for channel in range(count)
    )
    return Toy(toy.tensors, groups)


def scaled(toy: Toy, factor: float) -> Toy:
    """Every real number times a factor."""
    tensors = {name: one * factor if one.is_floating_point() else one for name, one in toy.tensors.items()}
    return Toy(tensors, toy.groups, toy.macs_per_element)
