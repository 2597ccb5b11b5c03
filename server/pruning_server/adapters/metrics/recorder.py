"""The Prometheus filling of `jobs.ports.Metrics` and of what the interceptor reports about RPCs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric

from pruning_server.adapters.metrics import labels
from pruning_server.adapters.metrics.endpoint import MetricsEndpoint
from pruning_server.adapters.metrics.families import (
    DatabaseFamilies,
    JobFamilies,
    RpcFamilies,
    RunFamilies,
    TransferFamilies,
)
from pruning_server.adapters.metrics.live import LiveCollector, LiveSources
from pruning_server.errors import Reason
from pruning_server.jobs.events import CountersAdded, RunSucceeded, WorkerMessage
from pruning_server.jobs.model import Job, JobState
from pruning_server.spec.phases import Phase

_GRPC = "grpc"
_MAX_COUNT = 2**53


class QuietRegistry(CollectorRegistry):
    """A registry without the `_created` series, which double the number of series and which nothing here reads."""

    def collect(self) -> Iterator[Metric]:
        """Every family, less the creation times."""
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class PrometheusMetrics:
    """Everything that the server measures, in one registry of its own.

    Label values come from closed sets (`labels.py`); numbers that a worker reports are taken only where they make sense.

    Args:
        registry: where the metrics are registered; None: a new one.
        monotonic: a clock for durations, in seconds.
        now: seconds since the epoch, for ages.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.registry = registry if registry is not None else QuietRegistry()
        self._monotonic = monotonic
        self._jobs = JobFamilies(self.registry)
        self._runs = RunFamilies(self.registry)
        self._transfers = TransferFamilies(self.registry)
        self._rpcs = RpcFamilies(self.registry)
        self._database = DatabaseFamilies(self.registry)
        self._live = LiveCollector(self.registry, now)
        self._methods = labels.MethodLabels()
        self._endpoint: MetricsEndpoint | None = None
        ProcessCollector(registry=self.registry)

    # --- The endpoint -------------------------------------------------------------------------------------------------

    def watch(self, sources: LiveSources) -> None:
        """Reads the live gauges from `sources` at each scrape from now on."""
        self._live.watch(sources)

    def serve(self, address: str) -> str:
        """Starts the HTTP endpoint on `HOST:PORT` (port 0: any) and returns the bound address.

        Raises:
            InvalidRequestError: the address is malformed or taken.
        """
        self.close()
        self._endpoint = MetricsEndpoint(self.registry, address)
        return self._endpoint.address

    def close(self) -> None:
        """Stops the HTTP endpoint, if it runs."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def render(self) -> str:
        """Returns what a scrape would get, in the text format."""
        return generate_latest(self.registry).decode()

    # --- jobs.ports.Metrics -------------------------------------------------------------------------------------------

    def job_submitted(self, strategy: str) -> None:
        """A job was accepted."""
        self._jobs.submitted.labels(labels.STRATEGIES.of(strategy)).inc()

    def job_completed(self, job: Job, device_type: str) -> None:
        """A job reached a terminal state."""
        strategy = labels.strategy_name(job.spec.strategy)
        outcome = labels.OUTCOMES.of(job.state.lower())
        reason = labels.failure_reason(job.failure) if job.state is JobState.FAILED else labels.NO_REASON
        self._jobs.completed.labels(strategy, labels.device_type(device_type), outcome, reason).inc()
        failed = job.failure if job.state is JobState.FAILED else None
        if failed is not None and failed.reason == Reason.VERIFICATION_FAILED:
            self._jobs.proof_failures.labels(strategy).inc()
        if job.start_time is not None and job.end_time is not None:
            self._jobs.duration.labels(strategy, outcome).observe(max(0.0, job.end_time - job.start_time))

    def job_started(self, queue_wait_seconds: float, device_type: str) -> None:
        """A run left the queue."""
        self._jobs.attempts.inc()
        self._jobs.queue_wait.labels(labels.device_type(device_type)).observe(max(0.0, queue_wait_seconds))

    def job_rejected(self, reason: str) -> None:
        """A submission was turned away."""
        self._jobs.rejections.labels(labels.REJECTIONS.of(reason)).inc()

    def worker_exited(self, cause: str) -> None:
        """A worker process ended."""
        self._runs.worker_exits.labels(labels.EXIT_CAUSES.of(cause)).inc()

    def phase_finished(self, phase: Phase, seconds: float) -> None:
        """A run left a phase."""
        if math.isfinite(seconds) and seconds >= 0:
            self._runs.phase_duration.labels(labels.PHASES.of(phase)).observe(seconds)

    def worker_message(self, message: WorkerMessage, strategy: str, device_type: str) -> None:
        """Counters and results that a worker reported; phases arrive through `phase_finished`."""
        strategy, device = labels.STRATEGIES.of(strategy), labels.device_type(device_type)
        match message:
            case CountersAdded():
                self._runs.parameters_processed.labels(strategy).inc(_count(message.parameters_processed))
                self._runs.parameters_removed.labels(strategy).inc(_count(message.parameters_removed))
                self._runs.samples.labels("train", device).inc(_count(message.samples_trained))
                self._runs.samples.labels("eval", device).inc(_count(message.samples_evaluated))
            case RunSucceeded():
                if 0 <= message.sparsity <= 1:
                    self._runs.sparsity.labels(strategy).observe(message.sparsity)
                if math.isfinite(message.accuracy_drop):
                    self._runs.metric_drop.labels(strategy).observe(max(0.0, message.accuracy_drop))
            case _:
                pass

    def cancel_finished(self, seconds: float) -> None:
        """A cancelled job's worker is gone."""
        self._jobs.cancel_latency.observe(max(0.0, seconds))

    @contextmanager
    def transfer(self, direction: str, transport: str = _GRPC) -> Iterator[Callable[[int], None]]:
        """Counts one transfer (`upload` or `download`, over `grpc` or `uri`) while open; call the value with bytes moved."""
        direction, transport = labels.DIRECTIONS.of(direction), labels.TRANSPORTS.of(transport)
        moved = self._transfers.bytes.labels(direction, transport)
        started = self._monotonic()
        with self._transfers.in_progress.labels(direction, transport).track_inprogress():
            try:
                yield moved.inc
            finally:
                self._transfers.duration.labels(direction).observe(self._monotonic() - started)

    def transfer_resumed(self, direction: str) -> None:
        """A transfer continued at an offset above 0."""
        self._transfers.resumes.labels(labels.DIRECTIONS.of(direction)).inc()

    def checksum_failed(self, direction: str) -> None:
        """Bytes did not match their checksum."""
        self._transfers.checksum_failures.labels(labels.DIRECTIONS.of(direction)).inc()

    # --- RPCs ---------------------------------------------------------------------------------------------------------

    def started(self, kind: str, service: str, method: str) -> None:
        """An RPC began."""
        self._rpcs.started.labels(*self._methods.of(kind, service, method)).inc()

    def handled(self, kind: str, service: str, method: str, code: str, seconds: float | None) -> None:
        """An RPC ended with `code` after `seconds`; None: its time is not to be counted."""
        method_labels = self._methods.of(kind, service, method)
        self._rpcs.handled.labels(*method_labels, labels.RPC_CODES.of(code)).inc()
        if seconds is not None:
            self._rpcs.handling.labels(*method_labels).observe(max(0.0, seconds))

    def message_received(self, kind: str, service: str, method: str) -> None:
        """A message of an RPC arrived."""
        self._rpcs.received.labels(*self._methods.of(kind, service, method)).inc()

    def message_sent(self, kind: str, service: str, method: str) -> None:
        """A message of an RPC was sent."""
        self._rpcs.sent.labels(*self._methods.of(kind, service, method)).inc()

    # --- The database -------------------------------------------------------------------------------------------------

    def transaction_finished(self, op: str, seconds: float) -> None:
        """A transaction (`read` or `write`) was committed."""
        self._database.duration.labels(labels.DATABASE_OPERATIONS.of(op)).observe(max(0.0, seconds))

    def transaction_failed(self, op: str) -> None:
        """A transaction (`read` or `write`) failed for a reason of the database."""
        self._database.errors.labels(labels.DATABASE_OPERATIONS.of(op)).inc()


def _count(reported: int) -> int:
    """A worker runs a stranger's model: a number that no run can reach is not added."""
    return reported if 0 <= reported <= _MAX_COUNT else 0
