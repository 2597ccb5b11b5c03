"""How far to go: the fewest steps of a ladder that meet a target that can be computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pruning_server.errors import JobFailureError, Reason
from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.ladder import Ladder
from pruning_server.pruning.values import Cost
from pruning_server.spec.request import Target, TargetKind

PICKS: Mapping[TargetKind, Callable[[Cost], int | None]] = {
    TargetKind.PARAMETER_RATIO: lambda cost: cost.parameters,
    TargetKind.MACS_RATIO: lambda cost: cost.macs,
}
"""What of a cost a target counts."""


@dataclass(frozen=True)
class Chosen:
    """The fewest steps that meet the target, or, if none do, all.

    Attributes:
        steps: of the ladder.
        counts: channels that go, by group number: those of the steps, less what rounding took in excess.
        achieved: in the target's unit.
        is_reached: whether that meets the target.
        notes: for the report; where it is not reached, what stands in the way.
    """

    steps: int
    counts: Mapping[int, int]
    achieved: float
    is_reached: bool
    notes: tuple[str, ...] = ()


def reach_sparsity(ladder: Ladder, sparsity: float) -> Chosen:
    """At least round(s * n) of the n channels that could go."""
    total = sum(ladder.sizes.values())
    wanted = round(sparsity * total)

    def is_enough(counts: Mapping[int, int]) -> bool:
        return sum(counts.values()) >= wanted

    steps = fewest(len(ladder), lambda steps: is_enough(ladder.counts(steps)))
    counts = give_back(ladder, steps, is_enough)
    removed = sum(counts.values())
    return Chosen(steps, counts, removed / total, removed >= wanted)


def reach_ratio(ladder: Ladder, cost: Callable[[Removal], Cost], target: Target) -> Chosen:
    """A cost of which at most the target's share is left."""
    share = CostShare(ladder, cost, target.kind)
    steps = fewest(len(ladder), lambda steps: share.of_steps(steps) <= target.value)
    counts = give_back(ladder, steps, lambda counts: share(counts) <= target.value)
    achieved = share(counts)
    return Chosen(steps, counts, achieved, achieved <= target.value)


class CostShare:
    """What is left of a cost, in (0, 1], by the channels that go.

    Raises:
        JobFailureError: TARGET_UNREACHABLE: the cost is not known.
    """

    def __init__(self, ladder: Ladder, cost: Callable[[Removal], Cost], kind: TargetKind) -> None:
        self._ladder, self._cost, self._kind = ladder, cost, kind
        self._known: dict[tuple[int, ...], float] = {}
        before = PICKS[kind](cost({}))
        if not before:
            raise _unknown(kind)
        self._before = before

    def __call__(self, counts: Mapping[int, int]) -> float:
        """After / before, with so many channels gone from each group."""
        key = tuple(counts.values())
        if key not in self._known:
            after = PICKS[self._kind](self._cost(self._ladder.removal(counts))) if any(key) else self._before
            if after is None:
                raise _unknown(self._kind)
            self._known[key] = after / self._before
        return self._known[key]

    def of_steps(self, steps: int) -> float:
        """After / before, when the ladder's first steps are gone; never grows with their number."""
        return self(self._ladder.counts(steps))


def fewest(most: int, is_enough: Callable[[int], bool]) -> int:
    """The smallest number in [0, most] that is enough, by bisection; `most` where none is."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def give_back(ladder: Ladder, steps: int, is_met: Callable[[Mapping[int, int]], bool]) -> dict[int, int]:
    """The steps' channels, less those that rounding to multiples took in excess: the last groups' first."""
    counts = ladder.counts(steps)
    if all(multiple == 1 for multiple in ladder.multiples.values()) or not is_met(counts):
        return counts
    last = {number: place for place, number in enumerate(ladder.steps[:steps])}
    for number in sorted(last, key=lambda number: -last[number]):
        while counts[number]:
            fewer = counts | {number: ladder.less(number, counts[number])}
            if not is_met(fewer):
                break
            counts = fewer
    return counts


def _unknown(kind: TargetKind) -> JobFailureError:
    return JobFailureError(
        Reason.TARGET_UNREACHABLE,
        f"a {kind.value} needs the model's {kind.value.removesuffix('_ratio')}, and they cannot be counted;"
        " ask for a sparsity" + (" or a parameter_ratio" if kind is TargetKind.MACS_RATIO else ""),
        metadata={"target": kind.value},
    )
