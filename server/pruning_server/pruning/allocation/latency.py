"""How far to go until the model takes at most a share of its time: measured on really shrunk models, not modelled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pruning_server.graph.surgery.cut import Removal
from pruning_server.pruning.allocation.targets import Chosen, fewest
from pruning_server.pruning.ladder import Ladder

SLACK = 0.03
"""Plans aim this much lower than the target, as the report's own measurement is another one."""

RESOLUTION = 0.03
"""Steps between which the cost changes by less than this share of the whole are not told apart."""

MAX_TRIALS = 6
MAX_CONFIRMATIONS = 5

FRIENDLY_MULTIPLES = (16, 8)
"""Widths that kernels work on at once: what comes for free up to the next of these is kept."""


class Measure(Protocol):
    """Measures after / before of a removal; `careful`: for longer."""

    def __call__(self, removal: Removal, *, careful: bool = False) -> float:
        """The ratio of medians."""
        ...


def reach_latency(
    ladder: Ladder,
    share: Callable[[int], float],
    measure: Measure,
    goal: float,
    *,
    widths_are_free: bool,
) -> Chosen:
    """The fewest steps that were measured to meet the goal, by bisection on what is left of a cost; at most about 15 measurements.

    A part of the time goes with no channel: calls, memory, whatever is frozen. Where it is most of it, channels buy hardly
    any time, and a goal near it would cost nearly all of them. So no more go than make the model measurably faster.

    Args:
        ladder: the order.
        share: what is left of a cost that goes with time, such as MACs, by the number of steps; never grows.
        measure: really cuts, and measures.
        goal: latency after / before, in (0, 1].
        widths_are_free: whether groups may keep more channels than their multiple asks for.

    Returns:
        Of the confirmed choice, `achieved` as measured; where no steps meet the goal, the fastest of those, not reached.
    """
    if goal >= 1:
        return Chosen(0, ladder.counts(0), 1.0, is_reached=True)
    search = _Search(ladder, share, measure, goal * (1 - SLACK), len(ladder))
    limit = search.find_floor()
    confirmed = search.confirm(search.bracket()) if search.most else None
    if confirmed is None:
        within = {steps: ratio for steps, ratio in search.careful.items() if steps <= search.most} or {0: 1.0}
        steps, ratio = min(within.items(), key=lambda item: item[1])
        return Chosen(steps, ladder.counts(steps), ratio / (1 - SLACK), is_reached=False, notes=limit)
    counts: Mapping[int, int] = ladder.counts(confirmed)
    ratio, widened = search.careful[confirmed], ""
    if widths_are_free:
        counts, ratio, widened = search.widen(counts, ratio)
    note = f"latency_ratio was measured {search.count} times while planning, last as {ratio:.3f}{widened}"
    return Chosen(confirmed, counts, ratio, is_reached=True, notes=(note,))


@dataclass
class _Search:
    """Measurements, and where to take the next.

    Attributes:
        goal: what a measurement must not exceed.
        most: steps that may be taken.
        careful: ratios of long measurements, by number of steps.
        count: number of measurements.
    """

    ladder: Ladder
    share: Callable[[int], float]
    measure: Measure
    goal: float
    most: int
    careful: dict[int, float] = field(default_factory=dict)
    count: int = 0

    def find_floor(self) -> tuple[str, ...]:
        """Sets how far steps still pay, from a measurement of all of them, and says so where that is not all the way.

        Time is taken for a constant and a part that goes with what is left of the cost: the last halving of what is left
        has to save a measurable part of the original's time.
        """
        everything = len(self.ladder)
        left = self.share(everything)
        ratio = self.careful[everything] = self._ratio(self.ladder.counts(everything), careful=True)
        saved_per_cost = (1 - ratio) / (1 - left) if left < 1 else 0.0
        floor = RESOLUTION / saved_per_cost if saved_per_cost > RESOLUTION else 1.0
        if left >= floor:
            return ()
        self.most = max(0, fewest(everything, lambda steps: self.share(steps) < floor) - 1)
        fixed = max(0.0, 1 - saved_per_cost)
        text = (
            f"about {fixed:.0%} of the time does not go with channels, so that below {floor:.0%} of the operations hardly any"
            " more is saved; no more is removed than that"
        )
        return (text,)

    def bracket(self) -> int:
        """The fewest steps that short measurements found to meet the goal; the most where none did."""
        failing, meeting = 0, self.most
        steps = self._steps_to(max(self.goal, self.share(meeting)))
        for _ in range(MAX_TRIALS):
            if not failing < steps < meeting:
                break
            if self._is_met(self.ladder.counts(steps)):
                meeting = steps
            else:
                failing = steps
            left, right = self.share(failing), self.share(meeting)
            if left - right < RESOLUTION:
                break
            steps = self._steps_to((left + right) / 2)
        return meeting

    def confirm(self, steps: int) -> int | None:
        """The first of these steps and a few more that a long measurement finds to meet the goal."""
        most, further = self.most, 2 * RESOLUTION
        for left in reversed(range(MAX_CONFIRMATIONS)):
            self.careful[steps] = self._ratio(self.ladder.counts(steps), careful=True)
            if self.careful[steps] <= self.goal:
                return steps
            if steps == most:
                return None
            steps = self._steps_to(self.share(steps) - further) if left > 1 else most
            further *= 2
        return None

    def widen(self, counts: Mapping[int, int], ratio: float) -> tuple[Mapping[int, int], float, str]:
        """Widths rounded up where that still meets the goal: counts, their ratio, and what to say of it."""
        for multiple in FRIENDLY_MULTIPLES:
            wider = self.ladder.widened(counts, multiple)
            if wider == counts or not any(wider.values()) or not self._is_met(wider):
                continue
            found = self._ratio(wider, careful=True)
            if found <= self.goal:
                return wider, found, f", with widths rounded up to multiples of {multiple}, which costs no time here"
        return counts, ratio, ""

    def _steps_to(self, share: float) -> int:
        return fewest(self.most, lambda steps: self.share(steps) <= share)

    def _is_met(self, counts: Mapping[int, int]) -> bool:
        return self._ratio(counts, careful=False) <= self.goal

    def _ratio(self, counts: Mapping[int, int], *, careful: bool) -> float:
        self.count += 1
        ratio = self.measure(self.ladder.removal(counts), careful=careful)
        return ratio if math.isfinite(ratio) else math.inf
