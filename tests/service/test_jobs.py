"""Jobs over the wire: submitted once, watched without gaps, and never cancelled by a call that ends."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.grpc_world import GrpcWorld
from helpers.processes import wait_until
from helpers.standin_worker import PROBE
from pruning_api.v1 import pruning_job_pb2, spec_pb2
from pruning_api.v1 import pruning_job_service_pb2 as api
from pruning_server.errors import Reason
from pruning_server.jobs.events import LogEvent, Severity
from pruning_server.jobs.model import Failure
from pruning_server.service.server import CallLimits

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILURE = Failure(reason=Reason.WORKER_EXCEPTION, message="it broke")


def get(world: GrpcWorld, job_id: str) -> pruning_job_pb2.PruningJob:
    return world.jobs.GetPruningJob(api.GetPruningJobRequest(job_id=job_id), timeout=10).job


def end(world: GrpcWorld, job_id: str) -> None:
    """Runs the oldest job to its failure, without a worker."""
    claim = world.world.store.claim(["cpu"], "test")
    assert claim is not None
    assert claim[0].job_id == job_id
    world.world.store.fail(job_id, 1, FAILURE, retry=False)


def test_submitting(world: GrpcWorld) -> None:
    job = world.submit(labels={"team": "vision"})
    assert job.state == pruning_job_pb2.JOB_STATE_QUEUED
    assert (job.attempt, job.max_attempts, dict(job.labels)) == (0, 3, {"team": "vision"})
    assert job.spec.evaluation.margin == 0.01
    assert job.spec.static.criterion == "l1"
    assert get(world, job.job_id) == job
    assert world.world.metrics.of("job_submitted") == [("static",)]


def test_a_repeated_request_returns_the_same_job(world: GrpcWorld, refused) -> None:
    spec, request_id = world.spec(), str(uuid.uuid4())
    first = world.submit(spec, request_id=request_id)
    for _ in range(4):
        world.submit()
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL") as caught:
        world.submit()
    assert caught[0].retry_after_seconds > 0
    assert world.submit(spec, request_id=request_id).job_id == first.job_id
    with refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        world.submit(world.spec(seed=7), request_id=request_id)


def test_many_submissions_of_one_request_make_one_job(world: GrpcWorld) -> None:
    spec, request_id = world.spec(), str(uuid.uuid4())
    request = api.CreatePruningJobRequest(request_id=request_id, spec=spec)
    calls = [world.jobs.CreatePruningJob.future(request, timeout=20) for _ in range(16)]
    assert len({call.result().job.job_id for call in calls}) == 1


def test_validating_stores_nothing(world: GrpcWorld, refused) -> None:
    job = world.submit(validate_only=True, request_id="")
    assert (job.job_id, job.state) == ("", pruning_job_pb2.JOB_STATE_QUEUED)
    assert not world.jobs.ListPruningJobs(api.ListPruningJobsRequest(), timeout=10).jobs
    with refused(INVALID, "INVALID_FIELD"):
        world.submit(world.spec(sparsity=1.0), validate_only=True)


def test_everything_wrong_with_a_submission_is_said_at_once(world: GrpcWorld, refused) -> None:
    spec = world.spec(sparsity=2.0, task=99)
    with refused(INVALID, "MISSING_FIELD") as caught:
        world.submit(spec, request_id="", labels={"": "x"})
    assert set(caught[0].violations) == {"request_id", "labels['']", "spec.task", "spec.sparsity"}
    with refused(INVALID, "MISSING_FIELD") as caught:
        world.jobs.CreatePruningJob(api.CreatePruningJobRequest(request_id="r"), timeout=10)
    assert set(caught[0].violations) == {"spec.model", "spec.validation", "spec.strategy"}


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"threshold": 0.0}, "INVALID_FIELD", "spec.threshold"),
        ({"threshold": float("nan")}, "INVALID_FIELD", "spec.threshold"),
        ({"device": "tpu"}, "INVALID_FIELD", "spec.device"),
        ({"device": "cuda:5"}, "UNKNOWN_DEVICE", "spec.device"),
        ({"static": spec_pb2.StaticStrategy(criterion="astrology")}, "UNKNOWN_CRITERION", "spec.static.criterion"),
        ({"model": spec_pb2.ArtifactSource(artifact_id="none")}, "ARTIFACT_NOT_FOUND", "spec.model"),
        ({"model": spec_pb2.ArtifactSource(uri="s3://bucket/model.pt")}, "URI_DENIED", "spec.model"),
        ({"seed": 2**64 - 1}, "INVALID_FIELD", "spec.seed"),
        ({"exclude_layers": ["x" * 400] * 5000}, "INVALID_FIELD", "spec"),
    ],
)
def test_bad_submissions(fields: dict[str, Any], reason: str, field: str, world: GrpcWorld, refused) -> None:
    with refused(INVALID, reason) as caught:
        world.submit(world.spec(**fields))
    assert set(caught[0].violations) == {field}
    assert world.world.metrics.of("job_rejected") == ([("uri_denied",)] if reason == "URI_DENIED" else [])


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"dynamic": spec_pb2.DynamicStrategy()}, "dynamic strategy"),
        ({"static": spec_pb2.StaticStrategy(granularity=spec_pb2.GRANULARITY_CHANNEL), "threshold": 0.5}, "threshold"),
    ],
)
def test_what_is_not_implemented(fields: dict[str, Any], name: str, world: GrpcWorld, refused) -> None:
    spec = world.spec()
    for key, value in fields.items():
        if isinstance(value, float):
            setattr(spec, key, value)
        else:
            getattr(spec, key).CopyFrom(value)
    with refused(grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED") as caught:
        world.submit(spec)
    assert name in caught[0].metadata["feature"]
    assert name in caught[0].message


def test_listing(world: GrpcWorld, refused) -> None:
    ids = [world.submit(labels={"index": str(i % 2)}).job_id for i in range(5)]
    end(world, ids[0])

    def found(**fields: Any) -> list[str]:
        jobs, token = [], ""
        while True:
            page = world.jobs.ListPruningJobs(
                api.ListPruningJobsRequest(page_size=2, page_token=token, **fields), timeout=10
            )
            jobs += [job.job_id for job in page.jobs]
            token = page.next_page_token
            if not token:
                return jobs

    assert found() == ids[::-1]
    assert found(states=[pruning_job_pb2.JOB_STATE_FAILED]) == ids[:1]
    assert found(states=[1, 5]) == ids[::-1]
    assert found(labels={"index": "1"}) == [ids[3], ids[1]]
    for bad in (0, 99):
        with refused(INVALID, "INVALID_FIELD") as caught:
            found(states=[1, bad])
        assert set(caught[0].violations) == {"states[1]"}


def test_a_page_of_large_jobs_is_cut_to_fit_a_message(world: GrpcWorld) -> None:
    spec = world.spec()
    spec.exclude_layers.extend(f"{i:0400d}" for i in range(2400))
    ids = {world.submit(spec).job_id for _ in range(5)}
    page = world.jobs.ListPruningJobs(api.ListPruningJobsRequest(page_size=1000), timeout=20)
    assert 1 <= len(page.jobs) < 5
    found, token = {job.job_id for job in page.jobs}, page.next_page_token
    while token:
        page = world.jobs.ListPruningJobs(api.ListPruningJobsRequest(page_size=1000, page_token=token), timeout=20)
        found, token = found | {job.job_id for job in page.jobs}, page.next_page_token
    assert found == ids


def test_cancelling_and_deleting(world: GrpcWorld, refused) -> None:
    job_id = world.submit().job_id
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_TERMINAL"):
        world.jobs.DeletePruningJob(api.DeletePruningJobRequest(job_id=job_id), timeout=10)
    for _ in range(2):
        job = world.jobs.CancelPruningJob(api.CancelPruningJobRequest(job_id=job_id), timeout=10).job
        assert job.state == pruning_job_pb2.JOB_STATE_CANCELLED
    world.jobs.DeletePruningJob(api.DeletePruningJobRequest(job_id=job_id), timeout=10)
    for call in (
        lambda: get(world, job_id),
        lambda: world.jobs.CancelPruningJob(api.CancelPruningJobRequest(job_id=job_id), timeout=10),
        lambda: world.jobs.DeletePruningJob(api.DeletePruningJobRequest(job_id=job_id), timeout=10),
        lambda: list(world.watch(job_id)),
    ):
        with refused(NOT_FOUND, "JOB_NOT_FOUND"):
            call()


def test_what_others_own_is_not_there(world: GrpcWorld, refused) -> None:
    job = world.world.submit()
    with refused(NOT_FOUND, "JOB_NOT_FOUND"):
        get(world, job.job_id)
    with refused(NOT_FOUND, "JOB_NOT_FOUND"):
        list(world.watch(job.job_id))


# --- watching ---------------------------------------------------------------------------------------------------------


def kinds(events: list[pruning_job_pb2.PruningJobEvent]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def test_a_watch_from_the_start_to_the_end(world: GrpcWorld) -> None:
    job_id = world.submit().job_id
    watch = world.watch(job_id)
    first = next(watch).event
    assert (first.WhichOneof("event"), first.sequence, first.snapshot.job_id) == ("snapshot", 1, job_id)
    end(world, job_id)
    events = [response.event for response in watch]
    numbered = [event for event in events if event.WhichOneof("event") != "heartbeat"]
    assert [event.sequence for event in numbered] == [1, 2, 3]
    assert [event.state.state for event in numbered] == [1, 2, 5]
    assert numbered[-1].state.failure.reason == "WORKER_EXCEPTION"


def test_a_watch_goes_on_where_another_ended(world: GrpcWorld) -> None:
    job_id = world.submit().job_id
    end(world, job_id)
    events = [response.event for response in world.watch(job_id, after_sequence=2)]
    assert (kinds(events), [event.sequence for event in events]) == (["snapshot", "state"], [3, 3])
    events = [response.event for response in world.watch(job_id, after_sequence=3)]
    assert kinds(events) == ["snapshot"]


def test_a_number_that_is_not_reached(world: GrpcWorld, refused) -> None:
    job_id = world.submit().job_id
    with refused(INVALID, "INVALID_FIELD") as caught:
        list(world.watch(job_id, after_sequence=2))
    assert set(caught[0].violations) == {"after_sequence"}


def test_heartbeats_come_while_nothing_happens(world: GrpcWorld) -> None:
    watch = world.watch(world.submit().job_id)
    events = [next(watch).event for _ in range(4)]
    assert kinds(events) == ["snapshot", "state", "heartbeat", "heartbeat"]
    assert [event.sequence for event in events] == [1, 1, 1, 1]
    watch.cancel()


def test_log_lines(world: GrpcWorld) -> None:
    job_id = world.submit().job_id
    watch = world.watch(job_id)
    world.world.store.claim(["cpu"], "test")
    world.world.store.append_event(job_id, 1, LogEvent(severity=Severity.WARNING, message="careful"))
    event = next(response.event for response in watch if response.event.WhichOneof("event") == "log")
    assert (event.log.severity, event.log.message) == (pruning_job_pb2.LOG_SEVERITY_WARNING, "careful")
    watch.cancel()


def test_a_watch_that_is_cancelled_leaves_its_job_and_frees_its_place(tmp_path: Path) -> None:
    with GrpcWorld(tmp_path / "data", limits=CallLimits(watches=1)) as world:
        job_id = world.submit().job_id
        for _ in range(5):
            watch = world.watch(job_id)
            next(watch)
            watch.cancel()
            wait_until(lambda: world.world.broker.watched_jobs() == 0, what="the end of the watch")
            wait_until(lambda: _can_watch(world, job_id), what="a free place")
        assert get(world, job_id).state == pruning_job_pb2.JOB_STATE_QUEUED


def _can_watch(world: GrpcWorld, job_id: str) -> bool:
    watch = world.watch(job_id)
    try:
        next(watch)
    except grpc.RpcError:
        return False
    watch.cancel()
    wait_until(lambda: world.world.broker.watched_jobs() == 0, what="the end of the watch")
    return True


def test_watches_cannot_take_every_thread(tmp_path: Path, refused) -> None:
    with GrpcWorld(tmp_path / "data", limits=CallLimits(watches=3)) as world:
        job_id = world.submit().job_id
        watches = [world.watch(job_id) for _ in range(3)]
        for watch in watches:
            next(watch)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS") as caught:
            next(world.watch(job_id))
        assert caught[0].retry_after_seconds == 10.0
        world.submit()
        for watch in watches:
            watch.cancel()


def test_when_the_server_stops_watches_end_as_unavailable(tmp_path: Path, refused) -> None:
    world = GrpcWorld(tmp_path / "data")
    with world:
        job_id = world.submit().job_id
        watch = world.watch(job_id)
        next(watch)
        stopped = threading.Thread(target=world.server.stop, args=(5.0,))
        stopped.start()
        with refused(grpc.StatusCode.UNAVAILABLE, "DRAINING"):
            list(watch)
        stopped.join(timeout=10)
        assert not stopped.is_alive()


def test_draining(world: GrpcWorld, refused) -> None:
    spec, request_id = world.spec(), str(uuid.uuid4())
    job_id = world.submit(spec, request_id=request_id).job_id
    world.jobs_service.drain()
    with refused(grpc.StatusCode.UNAVAILABLE, "DRAINING"):
        world.submit(spec)
    assert world.submit(spec, request_id=request_id).job_id == job_id
    assert get(world, job_id).job_id == job_id


# --- the server -------------------------------------------------------------------------------------------------------


def test_what_the_server_says_of_itself(world: GrpcWorld) -> None:
    info = world.jobs.GetServerInfo(api.GetServerInfoRequest(), timeout=10)
    assert (info.version, info.torch_version, info.python_version) == (
        "0.test", PROBE.torch_version, PROBE.python_version,
    )  # fmt: skip
    assert {device.name: device.slots for device in info.devices} == {
        device.name: 2 if device.name == "cpu" else 1 for device in PROBE.devices
    }
    assert (info.queue_capacity_jobs, info.max_attempts, info.max_artifact_bytes) == (5, 3, 2**30)
    assert (info.retention.seconds, info.default_timeout.seconds, info.sandboxed) == (3600, 60, False)


def test_strategies(world: GrpcWorld) -> None:
    listed = world.jobs.ListStrategies(api.ListStrategiesRequest(), timeout=10).strategies
    assert [info.name for info in listed] == [info.name for info in PROBE.strategies]
    static = next(info for info in listed if info.name == "static")
    assert static.available
    assert "l1" in [criterion.name for criterion in static.criteria]


# --- with a worker ----------------------------------------------------------------------------------------------------


def test_a_job_runs_to_its_end(running: GrpcWorld) -> None:
    job = running.submit()
    events = [response.event for response in running.watch(job.job_id)]
    assert events[-1].state.state == pruning_job_pb2.JOB_STATE_SUCCEEDED
    numbers = [event.sequence for event in events[1:] if event.WhichOneof("event") != "heartbeat"]
    assert numbers == list(range(1, len(numbers) + 1))
    result = get(running, job.job_id).result
    assert result.model_artifact_id
    assert result.report_artifact_id


def test_cancelling_a_running_job_stops_its_worker(running: GrpcWorld) -> None:
    job = running.submit(running.spec("hang"))
    watch = running.watch(job.job_id)
    next(event for event in watch if event.event.state.state == pruning_job_pb2.JOB_STATE_RUNNING)
    running.jobs.CancelPruningJob(api.CancelPruningJobRequest(job_id=job.job_id), timeout=10)
    last = list(watch)[-1].event
    assert last.state.state == pruning_job_pb2.JOB_STATE_CANCELLED
