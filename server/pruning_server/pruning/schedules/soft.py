"""Set to zero after every epoch but free to grow again in the next: nothing is decided before the end."""

from __future__ import annotations

from pruning_server.pruning.schedules.base import Schedule, Timing, all_at_once, nothing
from pruning_server.spec.request import Granularity

SCHEDULE = Schedule(
    name="soft",
    summary="the least important are set to 0 after every epoch and trained on all the same; the last epoch's are removed",
    source="He, Kang, Dong, Fu, Yang 2018, arXiv:1808.06866",
    granularities=frozenset({Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD, Granularity.NM}),
    timing=Timing(removed=all_at_once, exchanged=nothing, holds=False, per_epoch=True),
)
