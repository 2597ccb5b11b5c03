"""The select split decides: prune on while it stays within the budget, else go back and try half the step."""

from __future__ import annotations

from pruning_server.pruning.schedules.base import Schedule
from pruning_server.spec.request import JUDGED_SCHEDULE, Granularity

SCHEDULE = Schedule(
    name=JUDGED_SCHEDULE,
    summary=(
        "prunes on in steps, training after each, while the select split loses no more than the margin; goes back and"
        " halves the step where it does; without a target as far as that goes"
    ),
    source="this service; the step is halved as in backtracking line search (Armijo 1966)",
    granularities=frozenset({Granularity.WEIGHT, Granularity.CHANNEL, Granularity.HEAD, Granularity.NM}),
    timing=None,
    needs_target=False,
)
