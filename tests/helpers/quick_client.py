"""A client's patience, scaled to tests."""

from __future__ import annotations

from pruning_client import RetryPolicy

QUICK = RetryPolicy(attempts=3, initial_seconds=0.02, max_seconds=0.1, outage_seconds=5.0, exhausted_seconds=0.5)
