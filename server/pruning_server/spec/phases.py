"""The phases of a run, in order: the metric label, the progress phase and the error context."""

from __future__ import annotations

import enum


class Phase(enum.StrEnum):
    """Stages of a run, in their order."""

    LOAD = "LOAD"
    OBSERVE = "OBSERVE"
    BASELINE = "BASELINE"
    PLAN = "PLAN"
    PRUNE = "PRUNE"
    RECOVER = "RECOVER"
    VERIFY = "VERIFY"
    EVALUATE = "EVALUATE"
    EXPORT = "EXPORT"
