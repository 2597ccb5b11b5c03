"""How many channels every layer can still lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pruning_server.graph.coupling.groups import ChannelGroup
from pruning_server.pruning.ladder import HEAD, width

Lengths = Callable[[str, int], int]


class Room:
    """What is left of every axis of every stored tensor, and of every group, above the floors.

    Args:
        groups: those that may lose channels, by number.
        lengths: (tensor, axis) -> the axis's length.
        min_channels: what stays of every axis, in channels of the group; of a group one stays at least.
    """

    def __init__(self, groups: Mapping[int, ChannelGroup], lengths: Lengths, min_channels: int) -> None:
        self._groups = {number: group.size for number, group in groups.items()}
        self._single = frozenset(number for number, group in groups.items() if group.size == 1)
        self._left: dict[tuple[str, int], int] = {}
        self._floors: dict[tuple[str, int], int] = {}
        self._uses: dict[int, list[tuple[tuple[str, int], int]]] = {number: [] for number in groups}
        for number, group in groups.items():
            unit = 1 if group.kind == HEAD else width(group)
            for member in group.members:
                place, count = (member.tensor, member.axis), len(member.coordinates[0])
                self._left.setdefault(place, lengths(*place))
                self._uses[number].append((place, count))
                floor = min_channels * math.ceil(count / unit)
                self._floors[place] = max(self._floors.get(place, 1), floor)

    def has_for(self, number: int) -> bool:
        """Whether the group may lose one more channel."""
        # Without all channels of a group a branch of the model may be empty, where ops such as pools refuse to run.
        if self._groups[number] <= 1 and number not in self._single:
            return False
        return all(self._left[place] - count >= self._floors[place] for place, count in self._uses[number])

    def take(self, number: int) -> None:
        """Takes one channel."""
        self._groups[number] -= 1
        for place, count in self._uses[number]:
            self._left[place] -= count
