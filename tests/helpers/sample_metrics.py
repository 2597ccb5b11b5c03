"""Fills a PrometheusMetrics with one of everything, as a server that has worked for a while would."""

from __future__ import annotations

from collections.abc import Callable

from pruning_server.adapters.metrics import BuildInfo, LiveSources, PrometheusMetrics
from pruning_server.errors import Reason
from pruning_server.jobs.events import CountersAdded, RunSucceeded
from pruning_server.jobs.model import Failure, Job, JobState
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import ArtifactRef, PruningSpec, StaticStrategy, Verdict


def finished_job(state: JobState = JobState.SUCCEEDED, failure: Failure | None = None, seconds: float = 12.0) -> Job:
    """A job that ended in `state` after it ran for `seconds`."""
    spec = PruningSpec(
        model=ArtifactRef(artifact_id="m"), validation=ArtifactRef(artifact_id="v"), strategy=StaticStrategy()
    )
    return Job(
        job_id="4f1b",
        owner="somebody",
        request_id="r",
        spec=spec,
        device="cpu",
        state=state,
        attempt=1,
        max_attempts=3,
        create_time=1000.0,
        start_time=1001.0,
        end_time=1001.0 + seconds,
        failure=failure,
    )


def live_sources(now: Callable[[], float]) -> LiveSources:
    """Sources of a busy server."""
    return LiveSources(
        build=lambda: BuildInfo(version="0.1.0", python="3.11.2", torch="2.13.0", cuda=""),
        jobs_by_state=lambda: dict.fromkeys(JobState, 2),
        oldest_queued_time=lambda: now() - 30,
        queue_capacity_jobs=lambda: 100,
        workers=lambda: {"running": 2},
        heartbeat_age_seconds=lambda: 1.5,
        device_usage=lambda: {"cpu": (2, 4)},
        device_memory_bytes=lambda: {"cpu": 2**34},
        storage_bytes=lambda: {"artifacts": 10**9, "uploads": 10**6, "jobs": 10**6, "database": 10**5},
        storage_free_bytes=lambda: 10**11,
        landlock_abi=lambda: 7,
        ready=lambda: True,
        draining=lambda: False,
    )


def record_everything(metrics: PrometheusMetrics) -> None:
    """Reports one of every kind of event."""
    lost = Failure(reason=Reason.WORKER_LOST, message="gone")
    metrics.job_submitted("static")
    metrics.job_started(2.0, "cpu")
    for phase in Phase:
        metrics.phase_finished(phase, 1.5)
    counters = CountersAdded(
        parameters_processed=10_000, parameters_removed=8_000, samples_trained=600, samples_evaluated=200
    )
    metrics.worker_message(counters, "static", "cpu")
    succeeded = RunSucceeded(verdict=Verdict.PASS, sparsity=0.8, accuracy_drop=0.004, device_type="cpu")
    metrics.worker_message(succeeded, "static", "cpu")
    metrics.job_completed(finished_job(), "cpu")
    metrics.job_completed(finished_job(JobState.FAILED, lost), "cpu")
    metrics.job_completed(finished_job(JobState.CANCELLED), "cpu")
    metrics.worker_exited("ok")
    metrics.worker_exited("oom")
    metrics.cancel_finished(0.7)
    metrics.job_rejected("queue_full")
    for direction in ("upload", "download"):
        with metrics.transfer(direction) as moved:
            moved(2**20)
        metrics.transfer_resumed(direction)
        metrics.checksum_failed(direction)
    for op in ("read", "write"):
        metrics.transaction_finished(op, 0.001)
        metrics.transaction_failed(op)
    rpc = ("unary", "pruning_api.v1.PruningJobService", "GetPruningJob")
    metrics.started(*rpc)
    metrics.message_received(*rpc)
    metrics.message_sent(*rpc)
    metrics.handled(*rpc, "OK", 0.002)
    metrics.handled(*rpc, "INTERNAL", 0.002)
