"""What the server answers, from the wire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pruning_api.v1 import artifact_pb2, pruning_job_pb2, pruning_job_service_pb2, spec_pb2
from pruning_client.spec import Granularity, Verdict
from pruning_client.values import (
    Artifact,
    ArtifactKind,
    ArtifactState,
    ChannelGroup,
    CriterionInfo,
    Device,
    Event,
    EventBody,
    Failure,
    FeatureInfo,
    FrozenFinding,
    Heartbeat,
    Inspection,
    Job,
    JobState,
    LayerInspection,
    LogLine,
    Phase,
    Progress,
    Result,
    ScheduleInfo,
    ServerInfo,
    Severity,
    Snapshot,
    StateChange,
    StrategyInfo,
    TensorSpec,
)
from pruning_client.wire.common import enum_from_wire, enum_to_wire, seconds_from_wire, time_from_wire
from pruning_client.wire.spec import granularity_from_wire, spec_from_wire


def kind_to_wire(kind: ArtifactKind | str | None) -> Any:
    """Returns the number of the artifact kind; 0 for None."""
    return enum_to_wire(artifact_pb2.ArtifactKind, "ARTIFACT_KIND", ArtifactKind, kind)


def state_to_wire(state: JobState | str) -> Any:
    """Returns the number of the job state."""
    return enum_to_wire(pruning_job_pb2.JobState, "JOB_STATE", JobState, state)


def artifact_from_wire(message: artifact_pb2.Artifact) -> Artifact:
    """Returns the artifact as a value."""
    return Artifact(
        artifact_id=message.artifact_id,
        kind=enum_from_wire(artifact_pb2.ArtifactKind, "ARTIFACT_KIND", ArtifactKind, message.kind),
        state=enum_from_wire(artifact_pb2.ArtifactState, "ARTIFACT_STATE", ArtifactState, message.state),
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        committed_size_bytes=message.committed_size_bytes,
        display_name=message.display_name,
        create_time=time_from_wire(message, "create_time"),
        expire_time=time_from_wire(message, "expire_time"),
    )


def job_from_wire(message: pruning_job_pb2.PruningJob) -> Job:
    """Returns the job as a value."""
    return Job(
        job_id=message.job_id,
        state=_state_from_wire(message.state),
        spec=spec_from_wire(message.spec),
        progress=_progress_from_wire(message.progress) if message.HasField("progress") else None,
        attempt=message.attempt,
        max_attempts=message.max_attempts,
        create_time=time_from_wire(message, "create_time"),
        start_time=time_from_wire(message, "start_time"),
        end_time=time_from_wire(message, "end_time"),
        expire_time=time_from_wire(message, "expire_time"),
        failure=_failure_from_wire(message.failure) if message.HasField("failure") else None,
        result=_result_from_wire(message.result) if message.HasField("result") else None,
        labels=dict(message.labels),
        request_id=message.request_id,
    )


def event_from_wire(message: pruning_job_pb2.PruningJobEvent) -> Event | None:
    """Returns the event as a value; None for a kind that only a newer client knows."""
    kind = message.WhichOneof("event")
    body: EventBody
    if kind == "snapshot":
        body = Snapshot(job_from_wire(message.snapshot))
    elif kind == "state":
        body = StateChange(
            state=_state_from_wire(message.state.state),
            attempt=message.state.attempt,
            failure=_failure_from_wire(message.state.failure) if message.state.HasField("failure") else None,
        )
    elif kind == "progress":
        body = _progress_from_wire(message.progress)
    elif kind == "log":
        severity = enum_from_wire(pruning_job_pb2.LogSeverity, "LOG_SEVERITY", Severity, message.log.severity)
        body = LogLine(severity=severity or Severity.INFO, message=message.log.message)
    elif kind == "heartbeat":
        body = Heartbeat()
    else:
        return None
    return Event(sequence=message.sequence, time=time_from_wire(message, "time"), body=body)


def _state_from_wire(number: int) -> JobState:
    return enum_from_wire(pruning_job_pb2.JobState, "JOB_STATE", JobState, number) or JobState.UNKNOWN


def _phase_from_wire(number: int) -> Phase | None:
    return enum_from_wire(pruning_job_pb2.Phase, "PHASE", Phase, number)


def _progress_from_wire(message: pruning_job_pb2.Progress) -> Progress:
    return Progress(
        phase=_phase_from_wire(message.phase),
        fraction=message.fraction,
        epoch=message.epoch,
        epochs=message.epochs,
        remaining_seconds=seconds_from_wire(message, "remaining"),
        metrics=dict(message.metrics),
    )


def _failure_from_wire(message: pruning_job_pb2.JobFailure) -> Failure:
    return Failure(
        reason=message.reason,
        message=message.message,
        phase=_phase_from_wire(message.phase),
        metadata=dict(message.metadata),
    )


def _result_from_wire(message: pruning_job_pb2.JobResult) -> Result:
    return Result(
        model_artifact_id=message.model_artifact_id,
        report_artifact_id=message.report_artifact_id,
        verdict=enum_from_wire(spec_pb2.Verdict, "VERDICT", Verdict, message.verdict),
        sparsity=message.sparsity,
    )


def inspection_from_wire(message: pruning_job_service_pb2.InspectModelResponse) -> Inspection:
    """Returns the inspection as a value."""
    return Inspection(
        inputs=tuple(TensorSpec(tuple(t.shape), t.dtype) for t in message.inputs),
        layers=tuple(
            LayerInspection(
                name=layer.name,
                kind=layer.kind,
                shape=tuple(layer.shape),
                parameters=layer.parameters,
                macs=layer.macs,
                group_indices=tuple(layer.group_indices),
                min_parameter_ratio=layer.min_parameter_ratio,
            )
            for layer in message.layers
        ),
        groups=tuple(ChannelGroup(g.channels, tuple(g.layers)) for g in message.groups),
        frozen=tuple(FrozenFinding(f.op, f.source, f.reason, tuple(f.layers)) for f in message.frozen),
        notes=tuple(message.notes),
    )


def strategy_info_from_wire(message: pruning_job_service_pb2.StrategyInfo) -> StrategyInfo:
    """Returns the strategy's description as a value."""
    return StrategyInfo(
        name=message.name,
        summary=message.summary,
        available=message.available,
        granularities=_granularities(message.granularities),
        targets=tuple(message.targets),
        criteria=tuple(
            CriterionInfo(c.name, c.summary, c.source, _granularities(c.granularities), c.needs)
            for c in message.criteria
        ),
        schedules=tuple(
            ScheduleInfo(s.name, s.summary, s.source, _granularities(s.granularities)) for s in message.schedules
        ),
        features=tuple(FeatureInfo(f.name, f.level, f.formula, f.source, f.cost) for f in message.features),
    )


def _granularities(values: Iterable[int]) -> tuple[Granularity, ...]:
    """Those that this client knows."""
    return tuple(known for value in values if (known := granularity_from_wire(value)) is not None)


def server_info_from_wire(message: pruning_job_service_pb2.GetServerInfoResponse) -> ServerInfo:
    """Returns the server's description as a value."""
    return ServerInfo(
        version=message.version,
        torch_version=message.torch_version,
        python_version=message.python_version,
        devices=tuple(Device(d.name, d.description, d.memory_bytes, d.slots) for d in message.devices),
        max_artifact_bytes=message.max_artifact_bytes,
        queue_capacity_jobs=message.queue_capacity_jobs,
        max_attempts=message.max_attempts,
        retention_seconds=seconds_from_wire(message, "retention") or 0.0,
        default_timeout_seconds=seconds_from_wire(message, "default_timeout") or 0.0,
        sandboxed=message.sandboxed,
    )
