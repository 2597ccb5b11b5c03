"""How long the server takes to be ready and what it holds in memory when idle; run by `make bench-idle`."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from helpers.running_server import RunningServer

RUNS = 5
# The start-up probe runs in a process of its own; by then it is over.
SETTLE_SECONDS = 5.0


def main() -> int:
    """Prints the median time to ready and the resident memory after settling."""
    ready_seconds, rss_mb = [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            with RunningServer(Path(folder) / "data") as server:
                ready_seconds.append(time.monotonic() - start)
                time.sleep(SETTLE_SECONDS)
                rss_mb.append(server.rss_bytes() / 1e6)
    print(f"ready after {statistics.median(ready_seconds):.2f} s (worst {max(ready_seconds):.2f} s)")
    print(f"resident memory {statistics.median(rss_mb):.1f} MB (worst {max(rss_mb):.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
