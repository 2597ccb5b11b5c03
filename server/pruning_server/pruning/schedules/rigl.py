"""A constant sparsity whose places move: what matters least makes way for what the loss asks for most."""

from __future__ import annotations

import math

from pruning_server.pruning.schedules.base import Schedule, Timing, all_at_once
from pruning_server.spec.request import Granularity

FIRST_SHARE = 0.3
"""Of what is kept, exchanged at the first update; the paper's alpha."""

LAST_EXCHANGE = 0.75
"""Share of training after which nothing moves any more, so that the last ones to come can still learn; as in the paper."""


def exchanged(progress: float) -> float:
    """FIRST_SHARE / 2 * (1 + cos(pi t / T_end)), and 0 from T_end on."""
    if progress >= LAST_EXCHANGE:
        return 0.0
    return FIRST_SHARE / 2 * (1 + math.cos(math.pi * max(0.0, progress) / LAST_EXCHANGE))


SCHEDULE = Schedule(
    name="rigl",
    summary="all goes at once, then the smallest of what is left makes way, layer by layer, for what has the largest gradient",
    source="Evci, Gale, Menick, Castro, Elsen 2020, arXiv:1911.11134",
    granularities=frozenset({Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD}),
    timing=Timing(removed=all_at_once, exchanged=exchanged),
)
