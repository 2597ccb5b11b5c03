"""Which channels can be switched off by taking the first part of every axis: contiguous blocks, never gathered rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pruning_server.graph.structure import Structure
from pruning_server.graph.surgery.cut import Removal

# Blocks of this many channels suit every kernel; narrower groups are split as they are.
_BLOCK = 8


def find_core(structure: Structure, groups: Collection[int], share: float) -> Removal:
    """The channels that a core without them does not compute: all but the first `share`, in (0, 1), of each group.

    Groups whose first channels are not one block on every axis that they lie on, alone or beside other groups, stay
    whole. At least one channel of a group stays in the core.
    """
    removal = {
        number: tuple(range(kept, structure.groups[number].size))
        for number in groups
        if (kept := _core_size(structure.groups[number].size, share)) < structure.groups[number].size
    }
    while scattered := _scattered(structure, removal):
        removal = {number: channels for number, channels in removal.items() if number not in scattered}
    return removal


def _core_size(size: int, share: float) -> int:
    kept = max(1, round(size * share))
    return kept if size < 8 * _BLOCK else min(size, -(-kept // _BLOCK) * _BLOCK)


def _scattered(structure: Structure, removal: Mapping[int, tuple[int, ...]]) -> frozenset[int]:
    """Groups on axes of which more than one block is left."""
    owners = {structure.groups[number].classes[channel]: number for number, gone in removal.items() for channel in gone}
    axes = {(one.tensor, one.axis): one.classes for one in structure.axes}
    found: set[int] = set()
    for one in structure.cut(removal):
        if one.kept[-1] - one.kept[0] + 1 != len(one.kept):
            found.update(owners[root] for root in axes[one.tensor, one.axis] if root in owners)
    return frozenset(found)
