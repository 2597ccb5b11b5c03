"""Jobs that continue from an earlier one: its files are found when they are admitted, and kept for them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from helpers.job_world import OWNER, World
from helpers.standin_worker import PROBE
from pruning_server.errors import InvalidRequestError, NotFoundError, PreconditionError, Reason
from pruning_server.jobs.continuing import FIELD
from pruning_server.jobs.model import Job
from pruning_server.jobs.probe import Probe, StrategyInfo
from pruning_server.jobs.service import JobLimits, JobService
from pruning_server.jobs.workspace import EARLIER_MODEL_FILE, EARLIER_REPORT_FILE, WorkerJob
from pruning_server.spec.base import from_json
from pruning_server.spec.request import ArtifactRef, DynamicStrategy, Granularity, PruningSpec, StaticStrategy

NO_MODEL = ArtifactRef(artifact_id="")


class Idle:
    """A scheduler that runs nothing."""

    def wake(self) -> None: ...

    def cancel(self, job_id: str) -> None: ...


@pytest.fixture
def service(world: World) -> JobService:
    dynamic = StrategyInfo(name="dynamic", summary="", available=True)
    world.probe.answer = structs.replace(PROBE, strategies=(*PROBE.strategies, dynamic))
    assert isinstance(world.probe.answer, Probe)
    return JobService(
        store=world.store,
        artifacts=world.artifacts,
        gate=world.gate,
        probe=world.probe,
        runs=Idle(),
        broker=world.broker,
        metrics=world.metrics,
        clock=world.clock,
        limits=JobLimits(),
    )


def succeeded(world: World, **fields: Any) -> Job:
    """A job that the stand-in worker has finished."""
    job = world.claimed(strategy=StaticStrategy(granularity=Granularity.CHANNEL), **fields)
    outcome, _ = world.run(job)
    assert outcome.result is not None, outcome
    return world.store.succeed(job.job_id, job.attempt, outcome.result)


def continuing(world: World, job_id: str, **fields: Any) -> PruningSpec:
    strategy = DynamicStrategy(granularity=Granularity.CHANNEL, continue_from_job_id=job_id)
    return world.spec(**({"strategy": strategy, "model": NO_MODEL} | fields))


def submit(service: JobService, spec: PruningSpec, request_id: str = "") -> Job:
    return service.submit(OWNER, request_id or str(uuid.uuid4()), spec, {})


def test_the_files_of_the_earlier_job_are_found_and_its_model_is_the_default(world: World, service: JobService) -> None:
    earlier = succeeded(world)
    assert earlier.result is not None
    job = submit(service, continuing(world, earlier.job_id))
    assert job.spec.model == earlier.spec.model
    found = job.spec.continuation
    assert found is not None
    assert found.pruned.artifact_id == earlier.result.model_artifact_id
    assert found.report.artifact_id == earlier.result.report_artifact_id
    assert {found.pruned, found.report} <= set(job.spec.artifact_refs())
    assert service.validate(OWNER, continuing(world, earlier.job_id), {}).spec == job.spec


def test_the_same_request_gets_its_job_also_when_the_earlier_one_is_gone(world: World, service: JobService) -> None:
    earlier = succeeded(world)
    spec, request_id = continuing(world, earlier.job_id), str(uuid.uuid4())
    job = submit(service, spec, request_id)
    world.store.delete(OWNER, earlier.job_id)
    assert submit(service, spec, request_id) == job


def test_the_worker_finds_the_earlier_model_and_report_in_its_folder(world: World, service: JobService) -> None:
    earlier = succeeded(world)
    submit(service, continuing(world, earlier.job_id))
    claim = world.store.claim(["cpu"], "test")
    assert claim is not None
    kept = _job_file(world, claim[0])
    assert kept.earlier is not None
    assert kept.earlier.job_id == earlier.job_id
    assert (kept.earlier.model.path, kept.earlier.report.path) == (EARLIER_MODEL_FILE, EARLIER_REPORT_FILE)


def _job_file(world: World, job: Job) -> WorkerJob:
    """What the run was told, read while it ran."""
    found: list[bytes] = []

    def watch(_message: object) -> None:
        found.extend(path.read_bytes() for path in world.runs.glob(f"{job.job_id}/*/job.json"))
        assert list(world.runs.glob(f"{job.job_id}/*/{EARLIER_MODEL_FILE}"))
        assert list(world.runs.glob(f"{job.job_id}/*/{EARLIER_REPORT_FILE}"))

    world.executor().run(job, "cpu", watch, threading.Event())
    assert found
    return from_json(found[0], WorkerJob)


def test_its_result_is_kept_while_a_job_continues_from_it(world: World, service: JobService) -> None:
    earlier = succeeded(world)
    assert earlier.result is not None
    submit(service, continuing(world, earlier.job_id))
    with pytest.raises(PreconditionError) as caught:
        world.artifacts.delete(OWNER, earlier.result.model_artifact_id)
    assert caught.value.reason is Reason.ARTIFACT_IN_USE
    world.store.delete(OWNER, earlier.job_id)
    world.artifacts.collect_garbage()
    assert world.artifacts.get(OWNER, earlier.result.model_artifact_id).active
    assert world.artifacts.get(OWNER, earlier.result.report_artifact_id).active


def _unknown(world: World) -> PruningSpec:
    return continuing(world, "job-nobody-knows")


def _deleted_result(world: World) -> PruningSpec:
    earlier = succeeded(world)
    assert earlier.result is not None
    # Deleted by the caller, which is allowed once the job has ended.
    world.artifacts.delete(OWNER, earlier.result.report_artifact_id)
    return continuing(world, earlier.job_id)


def _cancelled(world: World) -> PruningSpec:
    job = world.submit()
    world.store.request_cancel(OWNER, job.job_id)
    strategy = DynamicStrategy(granularity=Granularity.WEIGHT, continue_from_job_id=job.job_id)
    return continuing(world, job.job_id, strategy=strategy)


def _other_granularity(world: World) -> PruningSpec:
    job_id = succeeded(world).job_id
    strategy = DynamicStrategy(granularity=Granularity.WEIGHT, continue_from_job_id=job_id)
    return continuing(world, job_id, strategy=strategy)


def _other_model(world: World) -> PruningSpec:
    return continuing(world, succeeded(world).job_id, model=world.upload(b"another model"))


@pytest.mark.parametrize(
    ("make", "field", "reason", "why"),
    [
        (_unknown, FIELD, Reason.JOB_NOT_FOUND, "no job 'job-nobody-knows'"),
        (_deleted_result, FIELD, Reason.ARTIFACT_NOT_FOUND, "its report was deleted"),
        (_cancelled, FIELD, Reason.INVALID_FIELD, "ended as CANCELLED"),
        (_other_granularity, FIELD, Reason.INVALID_FIELD, "granularity channel"),
        (_other_model, "spec.model", Reason.CONTENT_MISMATCH, "another model"),
    ],
)
def test_what_cannot_be_continued_from_is_refused_with_a_reason(
    world: World, service: JobService, make: Callable[[World], PruningSpec], field: str, reason: Reason, why: str
) -> None:
    spec = make(world)
    with pytest.raises(InvalidRequestError, match=why) as caught:
        submit(service, spec)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert caught.value.reason is reason


def test_a_job_that_runs_must_end_first(world: World, service: JobService) -> None:
    job = world.submit(strategy=StaticStrategy(granularity=Granularity.CHANNEL))
    with pytest.raises(PreconditionError, match="is QUEUED; wait") as caught:
        submit(service, continuing(world, job.job_id))
    assert caught.value.reason is Reason.JOB_NOT_TERMINAL


def test_jobs_of_others_are_not_there(world: World, service: JobService) -> None:
    earlier = succeeded(world)
    with pytest.raises((InvalidRequestError, NotFoundError)) as caught:
        service.submit("somebody else", str(uuid.uuid4()), continuing(world, earlier.job_id), {})
    assert caught.value.reason is Reason.JOB_NOT_FOUND


def test_a_model_is_needed_where_no_job_is_continued_from(world: World, service: JobService) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        submit(service, world.spec(model=NO_MODEL))
    assert [violation.field for violation in caught.value.violations] == ["spec.model"]
