"""The order in which channels go: nested removals, none of which empties a layer.

A layer is an axis of a stored tensor. No removal takes the last of its `min_channels` channels, whichever groups they are
in. What a removal keeps is then rounded up to a multiple, group by group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.allocation.orders import Step
from pruning_server.pruning.room import HEAD, Lengths, Room, width
from pruning_server.spec.request import ChannelConstraints

SOFT_FLOOR = 0.1
"""Where layers compete, each keeps this share of its channels for as long as others have more."""

ROUNDED_FROM = 64
"""Groups of this many channels and more are rounded by default, to `DEFAULT_MULTIPLE`."""

DEFAULT_MULTIPLE = 8


@dataclass(frozen=True)
class Ladder:
    """Removals that grow by one channel per step, before rounding.

    Attributes:
        steps: the number of the group that loses a channel, per step.
        channels: by group number, its channels in the order in which they go, without those that never go.
        sizes: by group number, how many channels it has.
        multiples: by group number, what the number of channels that it keeps is rounded up to.
        widths: by group number, coordinates per channel; without heads.
        soft_steps: number of steps before the first that takes a layer below `SOFT_FLOOR` or a group's last channel.
    """

    steps: tuple[int, ...]
    channels: Mapping[int, tuple[int, ...]]
    sizes: Mapping[int, int]
    multiples: Mapping[int, int]
    widths: Mapping[int, int]
    soft_steps: int

    def __len__(self) -> int:
        return len(self.steps)

    def counts(self, steps: int) -> dict[int, int]:
        """Channels that go from each group in the first `steps` steps, after rounding; grows with `steps`."""
        taken = dict.fromkeys(self.sizes, 0)
        for number in self.steps[:steps]:
            taken[number] += 1
        return {number: self._rounded(number, count) for number, count in taken.items()}

    def less(self, number: int, count: int) -> int:
        """The next smaller number of channels that may go from a group after rounding."""
        size, multiple = self.sizes[number], self.multiples[number]
        return size - min(size, (size - count) // multiple * multiple + multiple)

    def widened(self, counts: Mapping[int, int], multiple: int) -> dict[int, int]:
        """Fewer channels go, so that every group keeps coordinates in multiples of this too; heads stay as they are."""
        wider = dict(counts)
        for number, wide in self.widths.items():
            size, step = self.sizes[number], math.lcm(self.multiples[number], multiple // math.gcd(multiple, wide))
            wider[number] = size - min(size, math.ceil((size - counts[number]) / step) * step)
        return wider

    def removal(self, counts: Mapping[int, int]) -> Removal:
        """The channels that go, ascending, by number of their group; groups that lose none are left out."""
        return {number: tuple(sorted(self.channels[number][:count])) for number, count in counts.items() if count}

    def _rounded(self, number: int, taken: int) -> int:
        size, multiple = self.sizes[number], self.multiples[number]
        return size - min(size, math.ceil((size - taken) / multiple) * multiple)


def build_ladder(
    groups: Mapping[int, ChannelGroup],
    order: Sequence[Step],
    lengths: Lengths,
    constraints: ChannelConstraints,
    *,
    soft_floor: float = 0.0,
) -> Ladder:
    """Orders all channels that may go.

    Args:
        groups: those that may lose channels, by number.
        order: all their channels, in the order in which they should go; others go on where floors stop one.
        lengths: (tensor, axis) -> the axis's length; where it is not known, what all groups have of it.
        constraints: floors and multiples.
        soft_floor: the share of its channels that a layer keeps until nothing else is left.
    """
    room = Room(groups, lengths, constraints.min_channels, soft_floor)
    waiting = list(order)
    taken: list[tuple[int, int]] = []
    soft_steps = 0
    for soft in (True, False):
        blocked = []
        for number, channel in waiting:
            if room.has_for(number, soft=soft):
                room.take(number)
                taken.append((number, channel))
            else:
                blocked.append((number, channel))
        soft_steps = len(taken) if soft else soft_steps
        waiting = blocked
    channels: dict[int, list[int]] = {number: [] for number in groups}
    for number, channel in taken:
        channels[number].append(channel)
    return Ladder(
        steps=tuple(number for number, _ in taken),
        channels={number: tuple(order) for number, order in channels.items()},
        sizes={number: group.size for number, group in groups.items()},
        multiples={number: multiple_of(group, constraints) for number, group in groups.items()},
        widths={number: width(group) for number, group in groups.items() if group.kind != HEAD},
        soft_steps=soft_steps,
    )


def multiple_of(group: ChannelGroup, constraints: ChannelConstraints) -> int:
    """What the number of a group's channels that stay is rounded up to; heads are not rounded."""
    if group.kind == HEAD:
        return 1
    wide = width(group)
    default = DEFAULT_MULTIPLE if group.size * wide >= ROUNDED_FROM else 1
    multiple = default if constraints.multiple is None else constraints.multiple
    return multiple // math.gcd(multiple, wide)
