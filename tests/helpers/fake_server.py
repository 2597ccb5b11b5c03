"""A pruning server in this process, on a real port, whose jobs follow a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from types import TracebackType
from typing import Any, Self

import grpc

from helpers.fake_artifacts import FakeArtifacts, Script, status
from pruning_api.v1 import (
    artifact_pb2,
    artifact_service_pb2_grpc,
    pruning_job_pb2,
    pruning_job_service_pb2,
    pruning_job_service_pb2_grpc,
    spec_pb2,
)

Event = pruning_job_pb2.PruningJobEvent
TERMINAL = {pruning_job_pb2.JOB_STATE_SUCCEEDED, pruning_job_pb2.JOB_STATE_FAILED, pruning_job_pb2.JOB_STATE_CANCELLED}

PRUNED_MODEL = b"PK the pruned model" * 1000


def example_report(job_id: str = "job-1", verdict: str = "PASS") -> dict[str, Any]:
    """A report with every section set."""
    latency = {"p50": 0.002, "p95": 0.003, "batch": 32, "device": "cpu", "threads": 2, "runs": 20}
    cost = {"parameters": 1000, "nonzero_parameters": 1000, "macs": 5000, "bytes": 8000, "latency_seconds": latency}
    return {
        "schema_version": "1.1",
        "job": {"job_id": job_id},
        "model": {"original_sha256": "a" * 64, "original_bytes": 8000, "pruned_bytes": 3000, "kind": "torchscript"},
        "data": {"samples": 300, "splits": {"fit": 180, "select": 45, "report": 75}, "warnings": ["few samples"]},
        "strategy": {"name": "static", "target": {"sparsity": 0.8}, "achieved_sparsity": 0.8, "notes": []},
        "cost": {"original": cost, "pruned": cost | {"nonzero_parameters": 200, "bytes": 3000}},
        "accuracy": {
            "metric": "accuracy", "samples": 75, "original": 0.96, "pruned": 0.95, "delta": -0.01,
            "interval": [-0.025, 0.005], "mcnemar_p": 0.5, "loss": {"original": 0.1, "pruned": 0.12, "delta": 0.02},
        },
        "generalization": {
            "gap_original": 0.01, "gap_pruned": 0.02, "recovery_overfit": 0.0, "verdict": verdict, "margin": 0.03,
            "explanation": "the interval lies above the margin",
        },
        "robustness": None,
        "verify": None,
        "layers": [{"name": "fc.weight", "kind": "linear", "shape_before": [10, 100], "shape_after": [10, 100],
                    "kept": {}, "sparsity": 0.8}],
        "frozen": [{"op": "aten::foo", "source": "model.py:3", "reason": "unknown", "layers": ["conv"]}],
        "timings": {"LOAD": 0.5, "RECOVER": 3.0},
        "provenance": {"job_id": job_id, "seed": 0, "torch_version": "2.13.0"},
    }  # fmt: skip


def state_event(state: int, **failure: Any) -> Event:
    """An event that the job entered a state."""
    change = pruning_job_pb2.StateChange(state=state, attempt=1)  # type: ignore[arg-type]
    if failure:
        change.failure.CopyFrom(pruning_job_pb2.JobFailure(**failure))
    return Event(state=change)


def progress_event(phase: int, fraction: float, epoch: int = 0, epochs: int = 0, **metrics: float) -> Event:
    """An event that the run got further."""
    progress = pruning_job_pb2.Progress(phase=phase, fraction=fraction, epoch=epoch, epochs=epochs, metrics=metrics)  # type: ignore[arg-type]
    progress.remaining.FromSeconds(5)
    return Event(progress=progress)


def log_event(message: str, severity: int = pruning_job_pb2.LOG_SEVERITY_INFO) -> Event:
    """A line for people."""
    return Event(log=pruning_job_pb2.LogLine(severity=severity, message=message))  # type: ignore[arg-type]


def succeeding_run() -> list[Event]:
    """The events of a run that goes well."""
    return [
        state_event(pruning_job_pb2.JOB_STATE_QUEUED),
        state_event(pruning_job_pb2.JOB_STATE_RUNNING),
        progress_event(pruning_job_pb2.PHASE_LOAD, 0.1),
        progress_event(pruning_job_pb2.PHASE_RECOVER, 0.6, 1, 2, fit_loss=0.5),
        progress_event(pruning_job_pb2.PHASE_RECOVER, 0.8, 2, 2, fit_loss=0.25),
        state_event(pruning_job_pb2.JOB_STATE_SUCCEEDED),
    ]


def failing_run(reason: str, message: str) -> list[Event]:
    """The events of a run that fails in LOAD."""
    failure = {"reason": reason, "message": message, "phase": pruning_job_pb2.PHASE_LOAD}
    return [
        state_event(pruning_job_pb2.JOB_STATE_RUNNING),
        state_event(pruning_job_pb2.JOB_STATE_FAILED, **failure),
    ]


class FakeJobs(pruning_job_service_pb2_grpc.PruningJobServiceServicer):
    """Jobs whose events come from `next_run`."""

    def __init__(self, script: Script, artifacts: FakeArtifacts) -> None:
        self.script = script
        self.artifacts = artifacts
        self.jobs: dict[str, pruning_job_pb2.PruningJob] = {}
        self.events: dict[str, list[Event]] = {}
        self.next_run: Callable[[], list[Event]] = succeeding_run
        self.verdict = spec_pb2.VERDICT_PASS
        self.report = example_report
        # Numbered events after which one watch each is cut, in order; None: not.
        self.cut_watch_after: list[int | None] = []
        # The same, but the stream ends as if all were well.
        self.end_watch_after: list[int | None] = []
        self.devices = ["cpu"]
        self.max_artifact_bytes = 0
        self.strategies = default_strategies()
        self.inspection = pruning_job_service_pb2.InspectModelResponse()
        self.changed = threading.Condition()

    def CreatePruningJob(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("CreatePruningJob", request, context)
        known = next((j for j in self.jobs.values() if j.request_id == request.request_id), None)
        if known is not None:
            return pruning_job_service_pb2.CreatePruningJobResponse(job=known)
        if request.validate_only:
            return pruning_job_service_pb2.CreatePruningJobResponse(job=pruning_job_pb2.PruningJob(spec=request.spec))
        job = pruning_job_pb2.PruningJob(
            job_id=f"job-{len(self.jobs) + 1}", spec=request.spec, state=pruning_job_pb2.JOB_STATE_QUEUED,
            request_id=request.request_id, labels=request.labels, max_attempts=3,
        )  # fmt: skip
        job.create_time.FromSeconds(1_700_000_000)
        self.jobs[job.job_id] = job
        self.events[job.job_id] = []
        before = pruning_job_pb2.PruningJob()
        before.CopyFrom(job)
        for event in self.next_run():
            self.emit(job.job_id, event)
        return pruning_job_service_pb2.CreatePruningJobResponse(job=before)

    def emit(self, job_id: str, event: Event) -> None:
        """Adds a numbered event to a job, and its effect."""
        job = self.jobs[job_id]
        with self.changed:
            event.sequence = len(self.events[job_id]) + 1
            self.events[job_id].append(event)
            if event.WhichOneof("event") == "state":
                job.state = event.state.state
                if event.state.HasField("failure"):
                    job.failure.CopyFrom(event.state.failure)
                if job.state == pruning_job_pb2.JOB_STATE_SUCCEEDED or job.failure.reason == "VERDICT_NOT_REACHED":
                    self._attach_result(job)
            self.changed.notify_all()

    def _attach_result(self, job: pruning_job_pb2.PruningJob) -> None:
        report = json.dumps(self.report(job.job_id)).encode()
        job.result.model_artifact_id = self.artifacts.put(PRUNED_MODEL)
        job.result.report_artifact_id = self.artifacts.put(report, artifact_pb2.ARTIFACT_KIND_REPORT)
        job.result.verdict, job.result.sparsity = self.verdict, 0.8

    def _find(self, job_id: str, context: grpc.ServicerContext) -> pruning_job_pb2.PruningJob:
        if job_id not in self.jobs:
            context.abort_with_status(status(grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", f"no job {job_id}"))
        return self.jobs[job_id]

    def GetPruningJob(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("GetPruningJob", request, context)
        return pruning_job_service_pb2.GetPruningJobResponse(job=self._find(request.job_id, context))

    def ListPruningJobs(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("ListPruningJobs", request, context)
        found = [j for j in reversed(self.jobs.values()) if not request.states or j.state in request.states]
        start = int(request.page_token or 0)
        end = start + (request.page_size or 100)
        return pruning_job_service_pb2.ListPruningJobsResponse(
            jobs=found[start:end], next_page_token=str(end) if end < len(found) else ""
        )

    def WatchPruningJob(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.script.enter("WatchPruningJob", request, context)
        job, events = self._find(request.job_id, context), self.events[request.job_id]
        cut_after = self.cut_watch_after.pop(0) if self.cut_watch_after else None
        end_after = self.end_watch_after.pop(0) if self.end_watch_after else None
        yield self._response(Event(sequence=len(events), snapshot=job))
        at = request.after_sequence
        while context.is_active():
            while at < len(events):
                if cut_after is not None and at >= cut_after:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                if end_after is not None and at >= end_after:
                    return
                yield self._response(events[at])
                at += 1
            if job.state in TERMINAL:
                return
            yield self._response(Event(sequence=len(events), heartbeat=pruning_job_pb2.Heartbeat()))
            with self.changed:
                if at == len(events):
                    self.changed.wait(timeout=0.1)

    @staticmethod
    def _response(event: Event) -> Any:
        return pruning_job_service_pb2.WatchPruningJobResponse(event=event)

    def CancelPruningJob(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("CancelPruningJob", request, context)
        job = self._find(request.job_id, context)
        if job.state not in TERMINAL:
            self.emit(job.job_id, state_event(pruning_job_pb2.JOB_STATE_CANCELLING))
            self.emit(job.job_id, state_event(pruning_job_pb2.JOB_STATE_CANCELLED))
        return pruning_job_service_pb2.CancelPruningJobResponse(job=job)

    def DeletePruningJob(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("DeletePruningJob", request, context)
        if self._find(request.job_id, context).state not in TERMINAL:
            context.abort_with_status(
                status(grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_TERMINAL", "cancel it first")
            )
        del self.jobs[request.job_id]
        return pruning_job_service_pb2.DeletePruningJobResponse()

    def InspectModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("InspectModel", request, context)
        return self.inspection

    def ListStrategies(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("ListStrategies", request, context)
        return self.strategies

    def GetServerInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("GetServerInfo", request, context)
        info = pruning_job_service_pb2.GetServerInfoResponse(
            version="9.9", torch_version="2.13.0", max_artifact_bytes=self.max_artifact_bytes, max_attempts=3
        )
        for name in self.devices:
            info.devices.add(name=name, slots=1)
        return info


def default_strategies() -> pruning_job_service_pb2.ListStrategiesResponse:
    """Static weight pruning only, as in the first version."""
    response = pruning_job_service_pb2.ListStrategiesResponse()
    static = response.strategies.add(
        name="static", available=True, granularities=[spec_pb2.GRANULARITY_WEIGHT], targets=["threshold", "sparsity"]
    )
    static.criteria.add(name="l1", summary="absolute value")
    static.criteria.add(name="random")
    response.strategies.add(name="dynamic", available=False)
    response.strategies.add(name="conditional", available=False)
    return response


class FakeServer:
    """The server; a context manager. `address` stays the same over `stop` and `start`."""

    def __init__(self) -> None:
        self.script = Script()
        self.artifacts = FakeArtifacts(self.script)
        self.jobs = FakeJobs(self.script, self.artifacts)
        self.address = "127.0.0.1:0"
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Starts to serve."""
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=[("grpc.so_reuseport", 0)])
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(self.artifacts, self._server)
        pruning_job_service_pb2_grpc.add_PruningJobServiceServicer_to_server(self.jobs, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        """Stops at once; calls in flight end with UNAVAILABLE."""
        if self._server is not None:
            with self.jobs.changed:
                self.jobs.changed.notify_all()
            self._server.stop(0).wait()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
