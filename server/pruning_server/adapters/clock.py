"""The system's clock."""

from __future__ import annotations

import time


class SystemClock:
    """Fills `jobs.ports.Clock`."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()
