"""Gauges that are read when Prometheus scrapes, from callables that the composition root passes in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pruning_server.adapters.metrics import labels
from pruning_server.jobs.model import JobState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildInfo:
    """Versions of what runs; `torch` and `cuda` are empty until the probe has answered."""

    version: str
    python: str
    torch: str = ""
    cuda: str = ""


@dataclass(frozen=True)
class LiveSources:
    """Where the live gauges come from; each is called once per scrape, from the endpoint's threads.

    A source that is None leaves its metric out; one that raises leaves it out of that scrape and is counted.

    Attributes:
        build: versions, for `pruning_build_info`.
        jobs_by_state: number of jobs per state.
        oldest_queued_time: creation time (seconds since the epoch) of the job that waits longest; None: none waits.
        queue_capacity_jobs: how many jobs may wait.
        workers: `running` or `stopping` to number of worker processes.
        heartbeat_age_seconds: age of the oldest last message among the running workers; 0 without one.
        device_usage: device to (slots used, slots).
        device_memory_bytes: device to its memory.
        storage_bytes: `artifacts`, `uploads`, `jobs`, `database` to bytes on disk.
        storage_free_bytes: free space where the data lie.
        landlock_abi: version of Landlock that contains the workers; 0: they run without a sandbox.
        ready: whether submissions can be served.
        draining: whether the server is on its way down.
    """

    build: Callable[[], BuildInfo] | None = None
    jobs_by_state: Callable[[], Mapping[JobState, int]] | None = None
    oldest_queued_time: Callable[[], float | None] | None = None
    queue_capacity_jobs: Callable[[], int] | None = None
    workers: Callable[[], Mapping[str, int]] | None = None
    heartbeat_age_seconds: Callable[[], float] | None = None
    device_usage: Callable[[], Mapping[str, tuple[int, int]]] | None = None
    device_memory_bytes: Callable[[], Mapping[str, int]] | None = None
    storage_bytes: Callable[[], Mapping[str, int]] | None = None
    storage_free_bytes: Callable[[], int] | None = None
    landlock_abi: Callable[[], int] | None = None
    ready: Callable[[], bool] | None = None
    draining: Callable[[], bool] | None = None


Samples = Iterable[tuple[tuple[str, ...], float]]
# A source's value and the time now (seconds since the epoch) to samples; the value's type is that of the source.
Read = Callable[[Any, float], Samples]


def _scalar(value: float, _now: float) -> Samples:
    return [((), float(value))]


def _age(since: float | None, now: float) -> Samples:
    return [((), 0.0 if since is None else max(0.0, now - since))]


def _build(build: BuildInfo, _now: float) -> Samples:
    return [((build.version, build.python, build.torch, build.cuda), 1.0)]


def _sandbox(abi: int, _now: float) -> Samples:
    return [((str(abi),), float(abi > 0))]


def _states(counts: Mapping[JobState, int], _now: float) -> Samples:
    return [((state,), float(counts.get(JobState(state.upper()), 0))) for state in labels.LIVE_STATES.values]


def _workers(counts: Mapping[str, int], _now: float) -> Samples:
    return _summed(((labels.WORKER_STATES.of(state),), count) for state, count in counts.items())


def _slots(usage: Mapping[str, tuple[int, int]], _now: float) -> Samples:
    return _summed(
        ((labels.device_name(device), state), count)
        for device, (used, slots) in usage.items()
        for state, count in (("busy", used), ("free", slots - used))
    )


def _memory(sizes: Mapping[str, int], _now: float) -> Samples:
    return _summed(((labels.device_name(device), "total"), size) for device, size in sizes.items())


def _storage(sizes: Mapping[str, int], _now: float) -> Samples:
    return _summed(((labels.STORAGE_KINDS.of(kind),), size) for kind, size in sizes.items())


def _summed(samples: Iterable[tuple[tuple[str, ...], float]]) -> Samples:
    """Adds up samples with the same labels: a scrape with a series twice is refused as a whole."""
    totals: dict[tuple[str, ...], float] = {}
    for values, number in samples:
        totals[values] = totals.get(values, 0.0) + number
    return totals.items()


@dataclass(frozen=True)
class _Family:
    """One live metric: name, help, the attribute of LiveSources that feeds it, its labels, and how to read the value."""

    name: str
    help: str
    source: str
    label_names: tuple[str, ...] = ()
    read: Read = _scalar

    def empty(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self.name, self.help, labels=self.label_names)


_FAMILIES = (
    _Family("pruning_build_info", "Versions; always 1.", "build", ("version", "python", "torch", "cuda"), _build),
    _Family("pruning_jobs", "Jobs that are not over, by state.", "jobs_by_state", ("state",), _states),
    _Family("pruning_queue_oldest_age_seconds", "Age of the job that waits longest.", "oldest_queued_time", read=_age),
    _Family("pruning_queue_capacity_jobs", "Jobs that may wait.", "queue_capacity_jobs"),
    _Family("pruning_workers", "Worker processes now.", "workers", ("state",), _workers),
    _Family(
        "pruning_worker_heartbeat_age_seconds",
        "Age of the oldest last message among the running workers; 0 without one.",
        "heartbeat_age_seconds",
    ),
    _Family("pruning_device_slots", "Jobs that a device can take.", "device_usage", ("device", "state"), _slots),
    _Family("pruning_device_memory_bytes", "Memory of a device.", "device_memory_bytes", ("device", "kind"), _memory),
    _Family("pruning_storage_bytes", "Bytes on disk.", "storage_bytes", ("kind",), _storage),
    _Family("pruning_storage_free_bytes", "Free space where the data lie.", "storage_free_bytes"),
    _Family(
        "pruning_sandboxed",
        "Whether workers run inside the sandbox; the label is the kernel's Landlock ABI.",
        "landlock_abi",
        ("landlock_abi",),
        _sandbox,
    ),
    _Family("pruning_ready", "Whether submissions can be served.", "ready"),
    _Family("pruning_draining", "Whether the server is on its way down.", "draining"),
)
_ERRORS = ("pruning_collect_errors", "Live values that could not be read at a scrape.")


class LiveCollector:
    """Turns the sources into samples at each scrape."""

    def __init__(self, registry: CollectorRegistry, now: Callable[[], float]) -> None:
        self._now = now
        self._sources = LiveSources()
        self._errors = 0
        registry.register(self)

    def watch(self, sources: LiveSources) -> None:
        """Reads these sources from now on."""
        self._sources = sources

    def describe(self) -> Iterator[Metric]:
        """The families, without samples."""
        for family in _FAMILIES:
            yield family.empty()
        yield CounterMetricFamily(*_ERRORS)

    def collect(self) -> Iterator[Metric]:
        """The families with their samples of this moment."""
        for family in _FAMILIES:
            source = getattr(self._sources, family.source)
            metric = self._read(family, source) if source is not None else None
            if metric is not None:
                yield metric
        yield CounterMetricFamily(*_ERRORS, value=self._errors)

    def _read(self, family: _Family, source: Callable[[], object]) -> GaugeMetricFamily | None:
        metric = family.empty()
        try:
            for values, number in family.read(source(), self._now()):
                metric.add_metric(values, number)
        except Exception:  # One source that fails (a locked database, a folder gone) must not take the others along.
            self._errors += 1
            logger.warning("metric %s could not be read", family.name, exc_info=True)
            return None
        return metric
