"""Jobs, their events and what a server can do, to the wire."""

from __future__ import annotations

from pruning_api.v1 import pruning_job_pb2, pruning_job_service_pb2
from pruning_server.jobs.events import Event, LogEvent, ProgressEvent, Snapshot, StateEvent
from pruning_server.jobs.model import Failure, Job, Progress, Result
from pruning_server.jobs.probe import DeviceInfo, StrategyInfo
from pruning_server.service import converters_common as common
from pruning_server.service.converters_spec import spec_to_wire


def job_to_wire(job: Job) -> pruning_job_pb2.PruningJob:
    """Returns the job as its message."""
    return pruning_job_pb2.PruningJob(
        job_id=job.job_id,
        spec=spec_to_wire(job.spec),
        state=common.JOB_STATES.to_wire(job.state),
        progress=None if job.progress is None else progress_to_wire(job.progress),
        attempt=common.uint32(job.attempt),
        max_attempts=common.uint32(job.max_attempts),
        create_time=common.timestamp(job.create_time),
        start_time=common.timestamp(job.start_time),
        end_time=common.timestamp(job.end_time),
        expire_time=common.timestamp(job.expire_time),
        failure=None if job.failure is None else _failure(job.failure),
        result=None if job.result is None else _result(job.result),
        labels=job.labels,
        request_id=job.request_id,
    )


def snapshot_to_wire(snapshot: Snapshot, now: float) -> pruning_job_pb2.PruningJobEvent:
    """Returns the first event of a watch; `now` in seconds since the epoch."""
    job = snapshot.job
    return pruning_job_pb2.PruningJobEvent(
        sequence=job.last_sequence, time=common.timestamp(now), snapshot=job_to_wire(job)
    )


def heartbeat_to_wire(sequence: int, now: float) -> pruning_job_pb2.PruningJobEvent:
    """Returns the event that says that nothing happened since event number `sequence`."""
    return pruning_job_pb2.PruningJobEvent(
        sequence=sequence, time=common.timestamp(now), heartbeat=pruning_job_pb2.Heartbeat()
    )


def event_to_wire(event: Event) -> pruning_job_pb2.PruningJobEvent:
    """Returns a durable event as its message."""
    message = pruning_job_pb2.PruningJobEvent(sequence=event.sequence, time=common.timestamp(event.time))
    match event.payload:
        case StateEvent() as changed:
            message.state.state = common.JOB_STATES.to_wire(changed.state)
            message.state.attempt = common.uint32(changed.attempt)
            if changed.failure is not None:
                message.state.failure.CopyFrom(_failure(changed.failure))
        case ProgressEvent(progress=progress):
            message.progress.CopyFrom(progress_to_wire(progress))
        case LogEvent(severity=severity, message=text):
            message.log.severity = common.SEVERITIES.to_wire(severity)
            message.log.message = text
    return message


def progress_to_wire(progress: Progress) -> pruning_job_pb2.Progress:
    """Returns how far a run is as its message."""
    return pruning_job_pb2.Progress(
        phase=common.PHASES.to_wire(progress.phase),
        fraction=progress.fraction,
        epoch=common.uint32(progress.epoch),
        epochs=common.uint32(progress.epochs),
        remaining=common.duration(progress.remaining_seconds),
        metrics=progress.metrics,
    )


def strategy_info_to_wire(info: StrategyInfo) -> pruning_job_service_pb2.StrategyInfo:
    """Returns the description of a strategy as its message."""
    return pruning_job_service_pb2.StrategyInfo(
        name=info.name,
        summary=info.summary,
        available=info.available,
        granularities=[common.GRANULARITIES.to_wire(granularity) for granularity in info.granularities],
        targets=[target.value for target in info.targets],
        criteria=[
            pruning_job_service_pb2.CriterionInfo(
                name=item.name,
                summary=item.summary,
                source=item.source,
                granularities=[common.GRANULARITIES.to_wire(granularity) for granularity in item.granularities],
                needs=item.needs,
            )
            for item in info.criteria
        ],
        schedules=[
            pruning_job_service_pb2.ScheduleInfo(
                name=item.name,
                summary=item.summary,
                source=item.source,
                granularities=[common.GRANULARITIES.to_wire(granularity) for granularity in item.granularities],
            )
            for item in info.schedules
        ],
        features=[
            pruning_job_service_pb2.FeatureInfo(
                name=item.name, level=item.level.value, formula=item.formula, source=item.source, cost=item.cost
            )
            for item in info.features
        ],
    )


def device_to_wire(device: DeviceInfo, slots: int) -> pruning_job_service_pb2.Device:
    """Returns a device and the jobs that it takes at a time as its message."""
    return pruning_job_service_pb2.Device(
        name=device.name, description=device.description, memory_bytes=device.memory_bytes, slots=slots
    )


def _failure(failure: Failure) -> pruning_job_pb2.JobFailure:
    return pruning_job_pb2.JobFailure(
        reason=failure.reason.value,
        message=failure.message,
        phase=common.PHASES.to_wire(failure.phase),
        metadata=failure.metadata,
    )


def _result(result: Result) -> pruning_job_pb2.JobResult:
    return pruning_job_pb2.JobResult(
        model_artifact_id=result.model_artifact_id,
        report_artifact_id=result.report_artifact_id,
        verdict=common.VERDICTS.to_wire(result.verdict),
        sparsity=result.sparsity,
    )
