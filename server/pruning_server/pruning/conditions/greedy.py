"""The order in which channels go: one at a time over all groups, and after each the features that compare are new.

The channel that goes next has the best value of the first feature with an order: of the first that compares with kept
channels where there is one (the largest correlation goes first), else of the first that the condition names whose small or
large values say that a channel is not needed, else the smallest l1 relative to its layer. Equal ones go by the loss that they
leave where that was tried, else by that l1, so that of two twins the smaller goes, and then by their number. The partner of a
channel that went stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from pruning_server.pruning.conditions.tables import GroupTable
from pruning_server.pruning.features.base import Relation
from pruning_server.pruning.room import Room
from pruning_server.spec.condition import FEATURES, Condition, Role
from pruning_server.spec.condition.catalogue import Order


@dataclass(frozen=True)
class Step:
    """One channel that goes.

    Attributes:
        group: number of its group.
        key: what it was chosen by; lower went first.
        partner: the kept channel that it is most like; None where no feature names one.
        correlation: how much.
    """

    group: int
    channel: int
    key: float
    partner: int | None = None
    correlation: float = math.nan


def ordering_feature(condition: Condition) -> str | None:
    """The feature that decides who goes first; None: l1 relative to the layer."""
    ordered = [name for name in condition.features if FEATURES[name].order is not Order.NONE]
    relative = [name for name in ordered if FEATURES[name].role is Role.RELATIVE]
    return next(iter([*relative, *ordered]), None)


def order_channels(
    tables: Mapping[int, GroupTable],
    condition: Condition,
    tested: Mapping[int, Mapping[str, torch.Tensor]],
    losses: Mapping[int, torch.Tensor],
    room: Room,
) -> tuple[list[Step], int]:
    """Every channel that may go, in order, and how many qualified and stay because their layer would be too small.

    Args:
        tables: by number of the group.
        condition: what decides.
        tested: by number of the group, [channels] values of the features that are tested.
        losses: likewise, the loss that each channel leaves, where it was tried.
        room: how much may go.
    """
    queues = {
        number: _Queue(number, table, condition, tested.get(number, {}), losses.get(number))
        for number, table in tables.items()
    }
    waiting = {number: step for number, queue in queues.items() if (step := queue.best()) is not None}
    taken: list[Step] = []
    held = 0
    while waiting:
        number = min(waiting, key=lambda one: (waiting[one].key, one))
        step = waiting.pop(number)
        if not room.has_for(number):
            held += queues[number].waiting
            continue
        room.take(number)
        taken.append(step)
        following = queues[number].take(step)
        if following is not None:
            waiting[number] = following
    return taken, held


class _Queue:
    """The channels of one group that qualify, best first."""

    def __init__(
        self,
        number: int,
        table: GroupTable,
        condition: Condition,
        tested: Mapping[str, torch.Tensor],
        losses: torch.Tensor | None,
    ) -> None:
        self._number = number
        self._table = table
        self._condition = condition
        self._tested = tested
        self._kept = torch.ones(table.size, dtype=torch.bool)
        self._pinned = torch.zeros(table.size, dtype=torch.bool)
        self._importance = table.importance()
        self._ties = self._importance if losses is None else losses.nan_to_num(nan=math.inf)
        self._compares = condition.uses(Role.RELATIVE)
        self._order = ordering_feature(condition)
        self._ready: list[Step] = []
        self.waiting = 0
        self._refill()

    def best(self) -> Step | None:
        """The next that would go."""
        return self._ready[0] if self._ready else None

    def take(self, step: Step) -> Step | None:
        """Lets it go, and returns the next."""
        self._kept[step.channel] = False
        if step.partner is not None:
            self._pinned[step.partner] = True
        if self._compares:
            self._refill()
        else:
            self._ready.pop(0)
            self.waiting -= 1
        return self.best()

    def _refill(self) -> None:
        relations = self._table.relations(self._kept)
        changing = {name: relation.values for name, relation in relations.items()} | dict(self._tested)
        holds = self._table.truth(self._condition.tree, changing).true & self._kept & ~self._pinned
        keys = self._keys(changing)
        ranked = sorted(
            (int(channel) for channel in holds.nonzero().flatten()),
            key=lambda channel: (float(keys[channel]), float(self._ties[channel]), channel),
        )
        named = [relations[name] for name in self._condition.features if name in relations]
        pairing = next((relation for relation in named if relation.partners is not None), None)
        self.waiting = len(ranked)
        next_ones = ranked[:1] if self._compares else ranked
        self._ready = [self._step(channel, float(keys[channel]), pairing) for channel in next_ones]

    def _step(self, channel: int, key: float, pairing: Relation | None) -> Step:
        likeness = math.nan if pairing is None else float(pairing.values[channel])
        if pairing is None or pairing.partners is None or math.isnan(likeness):
            return Step(self._number, channel, key)
        return Step(self._number, channel, key, int(pairing.partners[channel]), likeness)

    def _keys(self, changing: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self._order is None:
            return self._importance
        values = self._table.values(self._order, changing)
        if not isinstance(values, torch.Tensor):
            return self._importance
        high = FEATURES[self._order].order is Order.HIGH
        # Of several members the one that speaks least for it.
        worst = -values.amin(dim=0) if high else values.amax(dim=0)
        return worst.nan_to_num(nan=math.inf)


def counts_after(steps: Sequence[Step], sizes: Mapping[int, int], multiples: Mapping[int, int]) -> dict[int, int]:
    """Channels that go from each group once what stays is rounded up to its multiple."""
    taken = dict.fromkeys(sizes, 0)
    for step in steps:
        taken[step.group] += 1
    return {
        number: sizes[number]
        - min(sizes[number], math.ceil((sizes[number] - count) / multiples[number]) * multiples[number])
        for number, count in taken.items()
    }


def first_of_each(steps: Sequence[Step], counts: Mapping[int, int]) -> Iterator[Step]:
    """The first steps of every group, as many as `counts` says."""
    left = dict(counts)
    for step in steps:
        if left[step.group] > 0:
            left[step.group] -= 1
            yield step
