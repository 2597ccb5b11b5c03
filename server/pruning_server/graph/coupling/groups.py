"""From classes of elements to groups of channels: which coordinates of which tensors go together, and what cannot go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.graph.channels import Cause, Channels
from pruning_server.graph.coupling.leaves import Leaf, Leaves
from pruning_server.graph.coupling.tracer import Tracer
from pruning_server.graph.values import FrozenUse


@dataclass(frozen=True)
class Member:
    """One axis of one stored tensor in a group.

    Attributes:
        tensor: its dotted name.
        aliases: further names of the same memory.
        axis: from 0.
        consumer: its coordinates only multiply the channels, so that zeros there switch them off.
        coordinates: per channel of the group, the coordinates that belong to it; equally many for each.
    """

    tensor: str
    aliases: tuple[str, ...]
    axis: int
    consumer: bool
    coordinates: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are alike: each can be removed on its own, with everything that belongs to it.

    Attributes:
        size: number of channels that can be removed; where they are all of an axis, one of them must stay.
        members: everything that belongs to them.
        kind: `head` where a channel is a whole head of attention, else `channel`.
        classes: per channel, the number of its class in `Channels`.
    """

    size: int
    members: tuple[Member, ...]
    kind: str = "channel"
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Coupling:
    """All groups of a module, and why the rest stays; `layers` of a finding are names of stored tensors."""

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenUse, ...]


_Place = tuple[int, int]


def couple(module: torch.jit.ScriptModule, samples: Mapping[str, Sequence[Sequence[object]]]) -> Coupling:
    """Finds which channels can only be removed together.

    Args:
        module: a load of the archive that nobody else uses; its state is the same afterwards.
        samples: by method, the inputs of each run. What only other methods use stays as it is.

    Raises:
        TypeError: too few arguments.
        RuntimeError: whatever the model raises, or a node that cannot be executed.
    """
    tracer = Tracer(module)
    for name, runs in samples.items():
        for inputs in runs:
            tracer.trace(name, inputs)
    tracer.finish()
    return Coupling(find_groups(tracer.leaves, tracer.channels), find_frozen(tracer.leaves, tracer.channels))


def find_groups(leaves: Leaves, channels: Channels) -> tuple[ChannelGroup, ...]:
    """Groups the free classes by where their elements lie, in the order of the stored tensors."""
    stored = list(leaves)
    places: dict[int, dict[_Place, list[int]]] = {}
    heads = channels.head_classes()
    for number, leaf in enumerate(stored):
        for axis, line in enumerate(leaf.lines):
            for coordinate, root in enumerate(channels.roots(line).tolist() if line is not None else ()):
                if not channels.is_frozen(root):
                    places.setdefault(root, {}).setdefault((number, axis), []).append(coordinate)
    alike: dict[object, list[int]] = {}
    for root, held in places.items():
        key = (root in heads, *((place, len(found)) for place, found in held.items()))
        alike.setdefault(key, []).append(root)
    return tuple(_group(stored, channels, {root: places[root] for root in roots}) for roots in alike.values())


def _group(
    stored: Sequence[Leaf], channels: Channels, classes: Mapping[int, Mapping[_Place, list[int]]]
) -> ChannelGroup:
    members = []
    first = next(iter(classes))
    for number, axis in classes[first]:
        leaf, coordinates = stored[number], tuple(tuple(held[number, axis]) for held in classes.values())
        line = leaf.lines[axis]
        consumer = line is not None and channels.is_consumer(int(line[coordinates[0][0]]))
        members.append(Member(leaf.name, leaf.aliases, axis, consumer, coordinates))
    kind = "head" if first in channels.head_classes() else "channel"
    return ChannelGroup(len(classes), tuple(members), kind, tuple(classes))


def find_frozen(leaves: Leaves, channels: Channels) -> tuple[FrozenUse, ...]:
    """Why classes are frozen, with the stored tensors that each reason keeps from being cut."""
    found: dict[Cause, dict[str, None]] = {}
    for leaf in leaves:
        for line in leaf.lines:
            roots = set(channels.roots(line).tolist()) if line is not None else set()
            for cause in dict.fromkeys(cause for root in sorted(roots) for cause in channels.causes(root)):
                if not cause.expected:
                    found.setdefault(cause, {})[leaf.name] = None
    return tuple(FrozenUse(cause.op, cause.source, cause.reason, tuple(names)) for cause, names in found.items())
