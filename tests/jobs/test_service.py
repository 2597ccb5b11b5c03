"""What a caller can do with jobs, over real stores and a real scheduler."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helpers.job_world import OWNER, World
from helpers.processes import wait_until
from helpers.standin_worker import PROBE
from pruning_server.errors import (
    AlreadyExistsError,
    CapacityError,
    InvalidArtifactError,
    InvalidRequestError,
    NotFoundError,
    NotImplementedFeatureError,
    PreconditionError,
    Reason,
    UnavailableError,
)
from pruning_server.jobs.events import Event, LogEvent, Severity, Snapshot, StateEvent
from pruning_server.jobs.model import Failure, Job, JobState
from pruning_server.jobs.probe import Probe, ScheduleInfo, StrategyInfo
from pruning_server.jobs.scheduler import Scheduler
from pruning_server.jobs.service import JobLimits, JobService
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.request import (
    ArtifactRef,
    DynamicStrategy,
    Granularity,
    Limits,
    Loss,
    PruningSpec,
    StaticStrategy,
)


class Idle:
    """A scheduler that runs nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.wakes = 0
        self.cancelled: list[str] = []

    def wake(self) -> None:
        self.wakes += 1

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)


@pytest.fixture
def idle() -> Idle:
    return Idle()


def service_over(world: World, runs: Idle | Scheduler, **limits: Any) -> JobService:
    return JobService(
        store=world.store,
        artifacts=world.artifacts,
        gate=world.gate,
        probe=world.probe,
        runs=runs,
        broker=world.broker,
        metrics=world.metrics,
        clock=world.clock,
        limits=JobLimits(**limits),
    )


@pytest.fixture
def service(world: World, idle: Idle) -> JobService:
    return service_over(world, idle)


def new_id() -> str:
    return str(uuid.uuid4())


def submit(service: JobService, spec: PruningSpec, request_id: str | None = None) -> Job:
    return service.submit(OWNER, request_id or new_id(), spec, {"team": "a"})


def fields(error: pytest.ExceptionInfo[InvalidRequestError]) -> list[str]:
    return [violation.field for violation in error.value.violations]


# --- submit -----------------------------------------------------------------------------------------------------------


def test_a_submitted_job_waits_and_the_scheduler_is_woken(world: World, service: JobService, idle: Idle) -> None:
    job = submit(service, world.spec(device="auto"))
    assert (job.state, job.device, job.labels, job.max_attempts) == (JobState.QUEUED, "cpu", {"team": "a"}, 3)
    assert service.get(OWNER, job.job_id) == job
    assert idle.wakes == 1
    assert world.metrics.of("job_submitted") == [("static",)]


def test_the_same_request_makes_one_job_even_if_the_queue_is_full_or_the_server_drains(
    world: World, idle: Idle
) -> None:
    service = service_over(world, idle, queue_capacity=1)
    spec, request_id = world.spec(), new_id()
    job = submit(service, spec, request_id)
    assert submit(service, spec, request_id) == job
    with pytest.raises(CapacityError) as full:
        submit(service, spec)
    assert full.value.retry_after_seconds is not None
    service.drain()
    assert submit(service, spec, request_id) == job
    with pytest.raises(AlreadyExistsError):
        submit(service, world.spec(seed=7), request_id)
    assert len(world.metrics.of("job_submitted")) == 1
    assert world.metrics.of("job_rejected") == [("queue_full",)]


def test_a_request_from_many_threads_makes_one_job(world: World, service: JobService) -> None:
    spec, request_id = world.spec(), new_id()
    jobs: list[Job] = []
    threads = [threading.Thread(target=lambda: jobs.append(submit(service, spec, request_id))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.job_id for job in jobs}) == 1
    assert len(jobs) == 8


def test_a_draining_server_takes_no_jobs(world: World, service: JobService) -> None:
    service.drain()
    for call in (lambda: submit(service, world.spec()), lambda: service.validate(OWNER, world.spec(), {})):
        with pytest.raises(UnavailableError) as caught:
            call()
        assert caught.value.reason is Reason.DRAINING
    assert ("draining",) in world.metrics.of("job_rejected")


def test_an_empty_request_id_is_refused(world: World, service: JobService) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        service.submit(OWNER, "", world.spec(), {})
    assert fields(caught) == ["request_id"]


def test_validate_checks_everything_and_stores_nothing(world: World, service: JobService, idle: Idle) -> None:
    job = service.validate(OWNER, world.spec(device="auto"), {"a": "b"})
    assert (job.job_id, job.device, job.state, job.labels) == ("", "cpu", JobState.QUEUED, {"a": "b"})
    assert service.list(OWNER, frozenset(), {}, 10, "") == ((), "")
    assert idle.wakes == 0
    with pytest.raises(InvalidRequestError):
        service.validate(OWNER, world.spec(device="cuda"), {})


def test_who_asks_before_uploading_hears_of_everything_but_the_files(world: World, service: JobService) -> None:
    nowhere = ArtifactRef(artifact_id="not-sent-yet")
    spec = msgspec.structs.replace(world.spec(), model=nowhere, validation=nowhere)
    with pytest.raises(InvalidRequestError) as caught:
        service.validate(OWNER, msgspec.structs.replace(spec, strategy=StaticStrategy(criterion="nonsense")), {})
    assert caught.value.reason is Reason.UNKNOWN_CRITERION
    with pytest.raises(InvalidRequestError) as caught:
        service.validate(OWNER, spec, {})
    assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND
    assert fields(caught) == ["spec.model", "spec.validation"]


def test_artifacts_must_be_there_whole_of_the_right_kind_and_the_ones_meant(world: World, service: JobService) -> None:
    pending = world.artifacts.create(OWNER, ArtifactKind.LOSS, "a" * 64, 10, "loss")
    good = world.spec()
    spec = msgspec.structs.replace(
        good,
        model=good.validation,
        validation=msgspec.structs.replace(good.validation, sha256="b" * 64),
        train=ArtifactRef(artifact_id="missing"),
        loss_module=ArtifactRef(artifact_id=pending.artifact_id),
    )
    with pytest.raises(InvalidRequestError) as caught:
        submit(service, spec)
    assert fields(caught) == ["spec.model", "spec.validation", "spec.train", "spec.loss_module"]
    assert caught.value.reason is Reason.ARTIFACT_WRONG_KIND
    texts = [violation.description for violation in caught.value.violations]
    assert "kind dataset" in texts[0]
    assert "b" * 64 in texts[1]
    assert "missing" in texts[2]
    assert "0 of 10 bytes" in texts[3]


def test_another_owner_s_artifact_is_not_there(world: World, service: JobService) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        service.submit("somebody else", new_id(), world.spec(), {})
    assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND


def test_the_right_sha256_is_accepted_in_any_case(world: World, service: JobService) -> None:
    good = world.spec()
    sha256 = world.artifacts.get(OWNER, good.model.artifact_id).sha256.upper()
    spec = msgspec.structs.replace(good, model=msgspec.structs.replace(good.model, sha256=sha256.lower()))
    assert submit(service, spec).state is JobState.QUEUED


def test_an_unknown_device_and_criterion_are_named_with_those_that_are_known(world: World, service: JobService) -> None:
    with pytest.raises(InvalidRequestError, match="no CUDA device") as device:
        submit(service, world.spec(device="cuda"))
    assert device.value.reason is Reason.UNKNOWN_DEVICE
    with pytest.raises(InvalidRequestError, match="l1") as criterion:
        submit(service, world.spec(strategy=StaticStrategy(criterion="magic")))
    assert (criterion.value.reason, fields(criterion)) == (Reason.UNKNOWN_CRITERION, ["spec.static.criterion"])


def test_a_strategy_that_the_workers_do_not_have_is_not_implemented(world: World, service: JobService) -> None:
    world.probe.answer = msgspec.structs.replace(PROBE, strategies=())
    with pytest.raises(NotImplementedFeatureError, match="static strategy"):
        submit(service, world.spec())


def test_a_schedule_is_one_that_the_workers_have_for_the_granularity(world: World, service: JobService) -> None:
    schedules = (ScheduleInfo(name="steady", summary="", source="", granularities=(Granularity.WEIGHT,)),)
    listed = StrategyInfo(name="dynamic", summary="", available=True, schedules=schedules)
    world.probe.answer = msgspec.structs.replace(PROBE, strategies=(*PROBE.strategies, listed))
    for wanted, granularity in (("sudden", Granularity.WEIGHT), ("steady", Granularity.CHANNEL)):
        with pytest.raises(InvalidRequestError, match="steady") as caught:
            submit(service, world.spec(strategy=DynamicStrategy(schedule=wanted, granularity=granularity)))
        assert fields(caught) == ["spec.dynamic.schedule"]
    submit(service, world.spec(strategy=DynamicStrategy(schedule="steady", granularity=Granularity.WEIGHT)))


def test_a_file_that_the_gate_refuses_is_named_by_its_field(world: World, service: JobService) -> None:
    def refuse(kind: ArtifactKind, _source: Path) -> None:
        if kind is ArtifactKind.DATASET:
            raise InvalidArtifactError(Reason.DATASET_EMPTY, "it is empty", metadata={"array": "inputs"})

    world.gate.before_check = refuse
    with pytest.raises(InvalidArtifactError, match=r"spec\.validation: it is empty") as caught:
        submit(service, world.spec())
    assert fields(caught) == ["spec.validation"]
    assert caught.value.reason is Reason.DATASET_EMPTY
    assert caught.value.metadata["array"] == "inputs"


def test_the_gate_is_asked_once_per_file(world: World, service: JobService) -> None:
    submit(service, world.spec())
    assert world.gate.checks == 2
    submit(service, world.spec(seed=1))
    assert world.gate.checks == 2


def test_what_the_files_hold_is_checked_against_the_request(world: World, service: JobService) -> None:
    world.gate.dataset = msgspec.structs.replace(world.gate.dataset, samples=1)
    with pytest.raises(InvalidRequestError, match="has 1 samples") as caught:
        submit(service, world.spec())
    assert fields(caught) == ["spec.validation"]


@pytest.mark.parametrize(
    ("changes", "limits", "field"),
    [
        ({"limits": Limits(memory_bytes=3 * 2**30)}, {"memory_bytes": 2**30}, "spec.limits.memory_bytes"),
        ({"limits": Limits(max_attempts=11)}, {}, "spec.limits.max_attempts"),
        ({"timeout_seconds": 100.0}, {"max_timeout_seconds": 10.0}, "spec.timeout"),
    ],
)
def test_a_request_above_the_server_s_limits_is_refused(
    world: World, idle: Idle, changes: dict[str, Any], limits: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError, match="at most") as caught:
        submit(service_over(world, idle, **limits), world.spec(**changes))
    assert fields(caught) == [field]


def test_a_job_may_ask_for_fewer_attempts(world: World, service: JobService) -> None:
    assert submit(service, world.spec(limits=Limits(max_attempts=1))).max_attempts == 1


def test_a_probe_that_is_not_there_yet_makes_the_server_unavailable(world: World, service: JobService) -> None:
    class NotYet:
        def get(self, timeout_seconds: float) -> Probe:
            raise UnavailableError(Reason.WORKER_NOT_INSTALLED, f"waited {timeout_seconds:g} s")

    service._probe = NotYet()
    with pytest.raises(UnavailableError):
        submit(service, world.spec())
    with pytest.raises(UnavailableError, match=r"waited 0\.5 s"):
        service.probe(0.5)


# --- cancel and delete ------------------------------------------------------------------------------------------------


def test_a_waiting_job_is_cancelled_at_once_and_counted_once(world: World, service: JobService, idle: Idle) -> None:
    job = submit(service, world.spec())
    threads = [threading.Thread(target=service.cancel, args=(OWNER, job.job_id)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.get(OWNER, job.job_id).state is JobState.CANCELLED
    assert len(world.metrics.of("job_completed")) == 1
    assert idle.cancelled == []


def test_a_running_job_is_being_cancelled_and_its_run_told(world: World, service: JobService, idle: Idle) -> None:
    job = submit(service, world.spec())
    world.store.claim(["cpu"], "test")
    assert service.cancel(OWNER, job.job_id).state is JobState.CANCELLING
    assert service.cancel(OWNER, job.job_id).state is JobState.CANCELLING
    assert set(idle.cancelled) == {job.job_id}
    with pytest.raises(PreconditionError):
        service.delete(OWNER, job.job_id)


def test_a_job_that_is_queued_again_while_it_is_cancelled_is_counted(
    world: World, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is over by then, so that nobody else would count it."""
    job = submit(service, world.spec())
    world.store.claim(["cpu"], "test")
    get = world.store.get

    def get_then_lose_the_run(owner: str | None, job_id: str) -> Job:
        found = get(owner, job_id)
        monkeypatch.undo()
        world.store.fail(job_id, 1, Failure(reason=Reason.WORKER_SIGNAL, message="It crashed."), retry=True)
        return found

    monkeypatch.setattr(world.store, "get", get_then_lose_the_run)
    assert service.cancel(OWNER, job.job_id).state is JobState.CANCELLED
    assert len(world.metrics.of("job_completed")) == 1


def test_a_job_that_has_ended_stays_as_it_is_and_can_be_deleted(world: World, service: JobService) -> None:
    job = submit(service, world.spec())
    service.cancel(OWNER, job.job_id)
    assert service.cancel(OWNER, job.job_id).state is JobState.CANCELLED
    assert len(world.metrics.of("job_completed")) == 1
    service.delete(OWNER, job.job_id)
    for call in (service.get, service.cancel, service.delete):
        with pytest.raises(NotFoundError):
            call(OWNER, job.job_id)


def test_another_owner_sees_nothing(world: World, service: JobService) -> None:
    job = submit(service, world.spec())
    calls: list[Callable[[], object]] = [
        lambda: service.get("other", job.job_id),
        lambda: service.cancel("other", job.job_id),
        lambda: service.delete("other", job.job_id),
        lambda: next(service.watch("other", job.job_id, 0, threading.Event(), 1.0)),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            call()
    assert service.list("other", frozenset(), {}, 10, "") == ((), "")


# --- watch ------------------------------------------------------------------------------------------------------------


def collect(watch: Iterator[Snapshot | Event | None]) -> tuple[list[Snapshot], list[Event], int]:
    """Returns (snapshots, events, heartbeats)."""
    seen = list(watch)
    return (
        [item for item in seen if isinstance(item, Snapshot)],
        [item for item in seen if isinstance(item, Event)],
        sum(item is None for item in seen),
    )


def finish(world: World, job: Job) -> Job:
    claim = world.store.claim(["cpu"], "test")
    assert claim is not None
    for number in range(3):
        world.store.append_event(job.job_id, 1, LogEvent(severity=Severity.INFO, message=str(number)))
    failure = Failure(reason=Reason.NOTHING_PRUNABLE, message="x")
    return world.store.fail(job.job_id, 1, failure, retry=False)


@pytest.mark.parametrize("after", [0, 1, 3, 5, 6])
def test_a_watch_of_an_ended_job_gives_the_rest_and_ends(world: World, service: JobService, after: int) -> None:
    job = finish(world, submit(service, world.spec()))
    assert job.last_sequence == 6
    snapshots, events, heartbeats = collect(service.watch(OWNER, job.job_id, after, threading.Event(), 60.0))
    assert [snapshot.job for snapshot in snapshots] == [job]
    assert [event.sequence for event in events] == list(range(after + 1, 7))
    assert heartbeats == 0


def test_a_watch_follows_a_job_to_its_end_without_gaps_from_any_point(world: World) -> None:
    scheduler = world.scheduler()
    service = service_over(world, scheduler)
    scheduler.start()
    try:
        job = submit(service, world.spec("crash_once"))
        watched: dict[int, list[Event]] = {}
        threads = [
            threading.Thread(
                target=lambda after=after: watched.__setitem__(
                    after, collect(service.watch(OWNER, job.job_id, after, threading.Event(), 60.0))[1]
                )
            )
            for after in (0, 1, 0)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20.0)
    finally:
        scheduler.stop(0.0)
    last = service.get(OWNER, job.job_id).last_sequence
    assert service.get(OWNER, job.job_id).state is JobState.SUCCEEDED
    for after, events in watched.items():
        assert [event.sequence for event in events] == list(range(after + 1, last + 1))
        assert isinstance(events[-1].payload, StateEvent)
        assert events[-1].payload.state is JobState.SUCCEEDED
    assert world.broker.watched_jobs() == 0


def test_news_arrive_at_once_and_not_with_the_heartbeat(world: World, service: JobService) -> None:
    job = submit(service, world.spec())
    watch = service.watch(OWNER, job.job_id, job.last_sequence, threading.Event(), 60.0)
    assert isinstance(next(watch), Snapshot)
    timer = threading.Timer(0.2, service.cancel, (OWNER, job.job_id))
    timer.start()
    started = time.monotonic()
    event = next(watch)
    assert time.monotonic() - started < 10.0
    assert isinstance(event, Event)
    assert event.payload == StateEvent(state=JobState.CANCELLED, attempt=0)
    assert list(watch) == []
    timer.join()


def test_a_quiet_job_is_watched_by_heartbeats_without_reading_its_events_again(
    world: World, service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(service, world.spec())
    reads: list[int] = []
    real = world.store.events_after
    monkeypatch.setattr(world.store, "events_after", lambda *a: (reads.append(1), real(*a))[1])
    watch = service.watch(OWNER, job.job_id, job.last_sequence, threading.Event(), 0.1)
    assert [next(watch) for _ in range(4)][1:] == [None, None, None]
    assert len(reads) <= 4
    watch.close()  # type: ignore[attr-defined]
    assert world.broker.watched_jobs() == 0


def test_a_watch_ends_when_its_call_does(world: World, service: JobService) -> None:
    job = submit(service, world.spec())
    stop = threading.Event()
    done = threading.Event()

    def watch() -> None:
        collect(service.watch(OWNER, job.job_id, 0, stop, 60.0))
        done.set()

    thread = threading.Thread(target=watch)
    thread.start()
    wait_until(lambda: world.broker.watched_jobs() == 1, what="the watch")
    stop.set()
    assert done.wait(3.0)
    thread.join()


def test_a_watch_of_a_deleted_job_ends_with_an_error(world: World, service: JobService) -> None:
    job = submit(service, world.spec())
    service.cancel(OWNER, job.job_id)
    watch = service.watch(OWNER, job.job_id, 0, threading.Event(), 0.1)
    next(watch)
    world.store.delete(OWNER, job.job_id)
    with pytest.raises(NotFoundError):
        list(watch)


@pytest.mark.parametrize("after", [-1, 2, 10**9])
def test_a_number_that_no_event_has_is_refused(world: World, service: JobService, after: int) -> None:
    job = submit(service, world.spec())
    with pytest.raises(InvalidRequestError) as caught:
        next(service.watch(OWNER, job.job_id, after, threading.Event(), 1.0))
    assert fields(caught) == ["after_sequence"]


def test_a_loss_that_needs_targets_is_accepted_where_there_are_some(world: World, service: JobService) -> None:
    assert submit(service, world.spec(loss=Loss.CROSS_ENTROPY)).spec.loss is Loss.CROSS_ENTROPY
