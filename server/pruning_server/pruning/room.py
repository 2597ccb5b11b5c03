"""How many channels every layer can still lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pruning_server.graph.coupling.groups import ChannelGroup

HEAD = "head"

Lengths = Callable[[str, int], int]


def width(group: ChannelGroup) -> int:
    """Coordinates per channel of the group in the axis where it has fewest: 4 for a grouped convolution's groups of 4."""
    return min(len(member.coordinates[0]) for member in group.members)


class Room:
    """How much every axis of every stored tensor, and every group, can still lose.

    Args:
        groups: those that may lose channels, by number.
        lengths: (tensor, axis) -> the axis's length.
        min_channels: what stays of every axis, in channels of the group.
        soft: the share of every axis that stays while `has_for` is asked softly.
    """

    def __init__(
        self, groups: Mapping[int, ChannelGroup], lengths: Lengths, min_channels: int, soft: float = 0.0
    ) -> None:
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

    def has_for(self, number: int, *, soft: bool = True) -> bool:
        """Whether the group may lose one more channel; softly, it keeps one, and axes their share."""
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
