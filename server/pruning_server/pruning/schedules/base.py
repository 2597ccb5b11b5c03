"""What a schedule is: how far pruning is, and what is exchanged, as training goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pruning_server.spec.request import Granularity

Course = Callable[[float], float]
"""A share in [0, 1] by the share of training that is over, in [0, 1]."""


@dataclass(frozen=True)
class Timing:
    """A schedule that time alone moves.

    Attributes:
        removed: how much of what the target takes is switched off; never falls, and is 1 at the end.
        exchanged: how much of what is kept makes place, at an update, for as much that comes back; 0 at the end.
        holds: whether what is switched off stays 0 between updates; else it may grow again until the next one.
        per_epoch: whether updates are at the ends of epochs; else they are spread evenly over the steps.
    """

    removed: Course
    exchanged: Course
    holds: bool = True
    per_epoch: bool = False


@dataclass(frozen=True)
class Schedule:
    """A way of pruning while training.

    Attributes:
        name: as in requests.
        summary: one line for people.
        source: authors, year, arXiv.
        granularities: what it can prune.
        timing: when what goes; None: the select split decides (`pruning.dynamic.controller`).
        needs_target: whether the request has to say how far.
    """

    name: str
    summary: str
    source: str
    granularities: frozenset[Granularity]
    timing: Timing | None
    needs_target: bool = True


def all_at_once(_: float) -> float:
    """Everything that the target takes is off from the first update on."""
    return 1.0


def nothing(_: float) -> float:
    """Nothing is exchanged."""
    return 0.0
