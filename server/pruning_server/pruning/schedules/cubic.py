"""Fast at first, while there is much to spare, and slower towards the end."""

from __future__ import annotations

from pruning_server.pruning.schedules.base import Schedule, Timing, nothing
from pruning_server.spec.request import Granularity


def removed(progress: float) -> float:
    """1 - (1 - t / T)^3."""
    return 1.0 - (1.0 - min(1.0, max(0.0, progress))) ** 3


SCHEDULE = Schedule(
    name="cubic",
    summary="sparsity grows as 1 - (1 - t/T)^3 while training goes on, scored anew at each step; what went stays away",
    source="Zhu, Gupta 2017, arXiv:1710.01878",
    granularities=frozenset({Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD, Granularity.NM}),
    timing=Timing(removed=removed, exchanged=nothing),
)
