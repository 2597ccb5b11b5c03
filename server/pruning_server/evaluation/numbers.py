"""A number of both models as the report holds it."""

from __future__ import annotations

import numpy as np

from pruning_server.evaluation.paired import Interval
from pruning_server.spec.report_accuracy import PairedNumber


def paired_number(original: float, pruned: float, delta: float, interval: Interval | None) -> PairedNumber:
    """Returns the numbers, None for those that are not finite, and the interval, if there is one."""
    return PairedNumber(
        original=_finite(original),
        pruned=_finite(pruned),
        delta=_finite(delta),
        interval=None if interval is None else (interval.low, interval.high),
        interval_method=None if interval is None else interval.method,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
