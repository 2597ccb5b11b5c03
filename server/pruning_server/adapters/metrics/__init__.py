"""Prometheus: the only place that knows `prometheus_client`. `docs/metrics.md` lists what it exposes."""

from __future__ import annotations

from pruning_server.adapters.metrics.database import MeasuredDatabase
from pruning_server.adapters.metrics.live import BuildInfo, LiveSources
from pruning_server.adapters.metrics.recorder import PrometheusMetrics
from pruning_server.adapters.metrics.storage import StorageUsage

__all__ = ["BuildInfo", "LiveSources", "MeasuredDatabase", "PrometheusMetrics", "StorageUsage"]
