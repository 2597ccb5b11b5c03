"""Statistics of measured times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def quantiles(durations_seconds: Sequence[float]) -> tuple[float, float]:
    """Returns p50 and p95 of the durations, in seconds, interpolated linearly.

    Raises:
        ValueError: there are none.
    """
    if not durations_seconds:
        raise ValueError("no durations were measured")
    p50, p95 = np.quantile(np.asarray(durations_seconds, dtype=np.float64), [0.5, 0.95])
    return float(p50), float(p95)
