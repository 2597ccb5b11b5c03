"""The order in which channels go: nested removals, none of which empties a layer.

A layer is an axis of a stored tensor. No removal takes the last of its `min_channels` channels, whichever groups they are
in. What a removal keeps is then rounded up to a multiple, group by group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.allocation.orders import Step
from pruning_server.spec.request import ChannelConstraints

SOFT_FLOOR = 0.1
"""Where layers compete, each keeps this share of its channels for as long as others have more."""

ROUNDED_FROM = 64
"""Groups of this many channels and more are rounded by default, to `DEFAULT_MULTIPLE`."""

DEFAULT_MULTIPLE = 8
HEAD = "head"

Lengths = Callable[[str, int], int]


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
    room = _Room(groups, lengths, constraints.min_channels, soft_floor)
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


def width(group: ChannelGroup) -> int:
    """Coordinates per channel of the group in the axis where it has fewest: 4 for a grouped convolution's groups of 4."""
    return min(len(member.coordinates[0]) for member in group.members)


def multiple_of(group: ChannelGroup, constraints: ChannelConstraints) -> int:
    """What the number of a group's channels that stay is rounded up to; heads are not rounded."""
    if group.kind == HEAD:
        return 1
    wide = width(group)
    default = DEFAULT_MULTIPLE if group.size * wide >= ROUNDED_FROM else 1
    multiple = default if constraints.multiple is None else constraints.multiple
    return multiple // math.gcd(multiple, wide)


class _Room:
    """How much every axis can still lose."""

    def __init__(self, groups: Mapping[int, ChannelGroup], lengths: Lengths, min_channels: int, soft: float) -> None:
        self._left: dict[tuple[str, int], int] = {}
        self._hard: dict[tuple[str, int], int] = {}
        self._uses: dict[int, list[tuple[tuple[str, int], int]]] = {}
        self._channels = {number: group.size for number, group in groups.items()}
        self._single = {number for number, group in groups.items() if group.size == 1}
        for number, group in groups.items():
            unit = 1 if group.kind == HEAD else width(group)
            for member in group.members:
                place, count = (member.tensor, member.axis), len(member.coordinates[0])
                if place not in self._left:
                    self._left[place] = lengths(*place)
                self._uses.setdefault(number, []).append((place, count))
                floor = min_channels * math.ceil(count / unit)
                self._hard[place] = max(self._hard.get(place, 1), floor)
        self._soft = {place: max(self._hard[place], math.ceil(soft * left)) for place, left in self._left.items()}

    def has_for(self, number: int, *, soft: bool) -> bool:
        """Whether the group may lose one more channel."""
        # Without all channels of a group a branch of the model may be empty, where ops such as pools refuse to run.
        if soft and self._channels[number] == 1 and number not in self._single:
            return False
        floors = self._soft if soft else self._hard
        return all(self._left[place] - count >= floors[place] for place, count in self._uses[number])

    def take(self, number: int) -> None:
        """Takes one channel."""
        self._channels[number] -= 1
        for place, count in self._uses[number]:
            self._left[place] -= count
