"""The scheduler with real stores and processes: every job ends exactly once, whatever happens to workers and server."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from helpers.job_world import World
from helpers.processes import command_lines, wait_until
from helpers.standin_worker import PROBE
from pruning_server.errors import Reason, UnavailableError
from pruning_server.jobs.devices import device_type
from pruning_server.jobs.events import StateEvent, WorkerAlive, WorkerMessage
from pruning_server.jobs.model import Failure, Job, JobState
from pruning_server.jobs.ports import CancelToken, RunOutcome
from pruning_server.jobs.probe import DeviceInfo, Probe
from pruning_server.jobs.scheduler import Scheduler
from pruning_server.spec.request import ArtifactRef


@contextmanager
def running(world: World, executor: Any = None, grace_seconds: float = 0.0, **options: Any) -> Iterator[Scheduler]:
    scheduler = world.scheduler(executor, **options)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop(grace_seconds)
        assert scheduler.workers() == {"running": 0, "stopping": 0}


def states(world: World, job: Job) -> list[JobState]:
    found = world.store.events_after(job.job_id, 0, 10_000)
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    return [event.payload.state for event in found if isinstance(event.payload, StateEvent)]


def wait_for_end(world: World, *jobs: Job, timeout_seconds: float = 30.0) -> list[Job]:
    wait_until(lambda: all(world.get(job).state.is_terminal for job in jobs), timeout_seconds, "every job's end")
    return [world.get(job) for job in jobs]


class GatedExecutor:
    """Runs until it is told to end or cancelled; remembers who ran where, and how many at a time."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.lock = threading.Lock()
        self.running: list[str] = []
        self.most: dict[str, int] = {}
        self.devices: dict[str, str] = {}

    def run(
        self, job: Job, device: str, on_message: Callable[[WorkerMessage], None], cancelled: CancelToken
    ) -> RunOutcome:
        on_message(WorkerAlive(rss_bytes=1))
        with self.lock:
            self.running.append(device)
            self.devices[job.job_id] = device
            self.most[device] = max(self.most.get(device, 0), self.running.count(device))
        while not (self.end.is_set() or cancelled.wait(0.005)):
            pass
        with self.lock:
            self.running.remove(device)

        reason = Reason.CANCELLED if cancelled.is_set() else Reason.NOTHING_PRUNABLE
        cause = "cancelled" if cancelled.is_set() else "ok"
        return RunOutcome(result=None, failure=Failure(reason=reason, message="x"), retryable=False, exit_cause=cause)


def with_devices(world: World, *names: str) -> None:
    devices = tuple(DeviceInfo(name=name, description="", memory_bytes=1) for name in names)
    world.probe.answer = msgspec.structs.replace(PROBE, devices=devices)


def test_jobs_run_to_their_ends_and_each_ends_once(world: World) -> None:
    behaviours = [(), ("refuse",), ("segfault",), ("crash_once",), ("raise",), ("mismatch",)]
    with running(world) as scheduler:
        jobs = [world.submit(*behaviour) for behaviour in behaviours]
        scheduler.wake()
        ended = wait_for_end(world, *jobs)
    good, refused, crashed, revived, raised, mismatched = ended
    assert [job.state for job in (good, revived)] == [JobState.SUCCEEDED] * 2
    assert [job.failure.reason for job in (refused, crashed, raised, mismatched)] == [
        Reason.NOTHING_PRUNABLE,
        Reason.WORKER_SIGNAL,
        Reason.WORKER_EXCEPTION,
        Reason.VERIFICATION_FAILED,
    ]
    assert [job.attempt for job in ended] == [1, 1, 3, 2, 1, 1]
    for job in ended:
        assert [state for state in states(world, job) if state.is_terminal] == [job.state]
    assert sorted(job.job_id for job, _ in world.metrics.of("job_completed")) == sorted(job.job_id for job in jobs)


def test_no_device_gets_more_jobs_than_slots_and_none_stays_idle(world: World) -> None:
    with_devices(world, "cpu", "cuda:0", "cuda:1")
    executor = GatedExecutor()
    jobs = [world.submit(device=device) for device in ["cpu"] * 5 + ["cuda"] * 3 + ["cuda:1"] * 2]
    with running(world, executor, cpu_slots=2, cuda_slots_per_device=1) as scheduler:
        wait_until(lambda: len(executor.running) == 4, what="a job on every slot")
        assert scheduler.device_usage() == {"cpu": (2, 2), "cuda:0": (1, 1), "cuda:1": (1, 1)}
        executor.end.set()
        wait_for_end(world, *jobs)
    assert executor.most == {"cpu": 2, "cuda:0": 1, "cuda:1": 1}
    for job in jobs:
        device = executor.devices[job.job_id]
        assert device == job.device or (job.device == "cuda" and device_type(device) == "cuda")
    assert scheduler.device_usage() == {"cpu": (0, 2), "cuda:0": (0, 1), "cuda:1": (0, 1)}


def test_a_job_that_comes_later_starts_when_the_scheduler_is_woken(world: World) -> None:
    executor = GatedExecutor()
    with running(world, executor) as scheduler:
        wait_until(lambda: scheduler.device_usage() != {}, what="the devices")
        world.submit()
        scheduler.wake()
        wait_until(lambda: executor.running, 2.0, "the job's start")


def test_cancelling_ends_the_worker_quickly(world: World) -> None:
    with running(world) as scheduler:
        job = world.submit("hang")
        scheduler.wake()
        wait_until(lambda: scheduler.workers()["running"] == 1, what="the run")
        wait_until(lambda: command_lines(str(world.folder)), what="the worker")
        assert world.store.request_cancel(job.owner, job.job_id).state is JobState.CANCELLING
        scheduler.cancel(job.job_id)
        [ended] = wait_for_end(world, job, timeout_seconds=5.0)
    assert ended.state is JobState.CANCELLED
    [(seconds,)] = world.metrics.of("cancel_finished")
    assert seconds < 3.0
    assert command_lines(str(world.folder)) == {}


def test_cancelling_a_job_that_does_not_run_here_does_nothing(world: World) -> None:
    with running(world) as scheduler:
        scheduler.cancel("unknown")


def test_cancels_at_random_moments_always_settle(world: World) -> None:
    chance = random.Random(7)
    with running(world, cpu_slots=3) as scheduler:
        jobs = [world.submit(f"slow={chance.uniform(0, 0.3):.2f}") for _ in range(12)]
        scheduler.wake()
        for job in chance.sample(jobs, 9):
            threading.Event().wait(chance.uniform(0, 0.1))
            world.store.request_cancel(job.owner, job.job_id)
            scheduler.cancel(job.job_id)
        ended = wait_for_end(world, *jobs)
    for job in ended:
        assert job.state in {JobState.CANCELLED, JobState.SUCCEEDED}
        assert sum(state.is_terminal for state in states(world, job)) == 1
        if JobState.CANCELLING in states(world, job):
            assert job.state is JobState.CANCELLED


def test_a_cancel_that_races_the_end_of_its_run_settles_once(world: World) -> None:
    """The run ends by itself at about the moment at which it is cancelled, a few hundred times."""
    chance = random.Random(3)

    class Quick:
        def run(
            self, job: Job, device: str, on_message: Callable[[WorkerMessage], None], cancelled: CancelToken
        ) -> RunOutcome:
            on_message(WorkerAlive(rss_bytes=len(device)))
            stopped = cancelled.wait(0.0005)
            reason = Reason.CANCELLED if stopped else Reason.NOTHING_PRUNABLE
            failure = Failure(reason=reason, message=job.job_id)
            return RunOutcome(
                result=None, failure=failure, retryable=False, exit_cause="cancelled" if stopped else "ok"
            )

    with running(world, Quick(), cpu_slots=4) as scheduler:
        jobs = [world.submit() for _ in range(200)]
        scheduler.wake()
        for job in jobs:
            if chance.random() < 0.7:
                world.store.request_cancel(job.owner, job.job_id)
                scheduler.cancel(job.job_id)
        wait_for_end(world, *jobs)
    seen = set()
    for job in jobs:
        history = states(world, job)
        assert sum(state.is_terminal for state in history) == 1
        assert (JobState.CANCELLING in history) <= (history[-1] is JobState.CANCELLED)
        seen.add(tuple(history))
    assert len(seen) > 1
    direct = sum(
        JobState.RUNNING not in states(world, job) for job in jobs
    )  # cancelled in the queue: not the scheduler's
    assert len(world.metrics.of("job_completed")) == len(jobs) - direct


def test_stopping_kills_the_workers_and_gives_the_attempts_back(world: World) -> None:
    with running(world) as scheduler:
        job = world.submit("hang", max_attempts=1)
        waiting = [world.submit("hang") for _ in range(3)]
        scheduler.wake()
        wait_until(lambda: scheduler.workers()["running"] == 2, what="two runs")
        wait_until(lambda: command_lines(str(world.folder)), what="a worker")
    assert command_lines(str(world.folder)) == {}
    stopped = world.get(job)
    assert (stopped.state, stopped.max_attempts - stopped.attempt) == (JobState.QUEUED, 1)
    assert all(world.get(other).state is JobState.QUEUED for other in waiting)
    assert world.metrics.of("job_completed") == []


def test_a_run_that_ends_within_the_grace_is_let_finish(world: World) -> None:
    with running(world, grace_seconds=20.0) as scheduler:
        job = world.submit("slow=0.3")
        later = [world.submit() for _ in range(5)]
        scheduler.wake()
        wait_until(lambda: world.get(job).state is JobState.RUNNING, what="the run")
    assert world.get(job).state is JobState.SUCCEEDED
    assert any(world.get(other).state is JobState.QUEUED for other in later)


def test_runs_of_a_dead_server_are_settled_at_the_start(world: World) -> None:
    lost, last, leaving = (world.submit(max_attempts=attempts) for attempts in (3, 1, 3))
    for _ in range(3):
        world.store.claim(["cpu"], "a dead server")
    world.store.request_cancel(leaving.owner, leaving.job_id)
    with running(world):
        ended = wait_for_end(world, lost, last, leaving)
    assert [job.state for job in ended] == [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]
    assert ended[1].failure.reason is Reason.WORKER_LOST
    assert ended[0].attempt == 2
    assert len(world.metrics.of("job_completed")) == 3


def test_a_job_for_a_device_that_is_gone_fails_and_says_so(world: World) -> None:
    gone = [world.submit(device=device) for device in ("cuda", "cuda:1")]
    stays = world.submit()
    with running(world):
        ended = wait_for_end(world, *gone, stays)
    assert [job.failure.reason for job in ended[:2]] == [Reason.UNKNOWN_DEVICE] * 2
    assert "cpu" in ended[0].failure.message
    assert ended[2].state is JobState.SUCCEEDED


def test_jobs_wait_for_a_probe_that_is_late(world: World) -> None:
    asked = threading.Event()

    class LateProbe:
        def get(self, timeout_seconds: float) -> Probe:
            assert timeout_seconds > 0
            if asked.is_set():
                return PROBE
            asked.set()
            raise UnavailableError(Reason.INTERNAL, "not yet")

    world.probe = LateProbe()  # type: ignore[assignment]
    with running(world):
        assert wait_for_end(world, world.submit())[0].state is JobState.SUCCEEDED


def test_scheduling_survives_a_fault_of_the_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_server.jobs.scheduler.FAULT_PAUSE_SECONDS", 0.01)
    real, tries = world.store.claim, []

    def claim(*arguments: Any) -> tuple[Job, str] | None:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("disk I/O error")
        return real(*arguments)

    monkeypatch.setattr(world.store, "claim", claim)
    with running(world):
        assert wait_for_end(world, world.submit())[0].state is JobState.SUCCEEDED


def test_a_run_without_a_thread_is_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_server.jobs.scheduler.FAULT_PAUSE_SECONDS", 0.01)
    real, tries = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("run-") and not tries:
            tries.append(1)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    job = world.submit(max_attempts=1)
    with running(world) as scheduler:
        [ended] = wait_for_end(world, job)
        wait_until(lambda: scheduler.device_usage() == {"cpu": (0, 2)}, what="the slots' return")
    assert ended.state is JobState.SUCCEEDED


def test_the_house_is_kept(world: World) -> None:
    world.store._retention_seconds = 0.0
    with running(world, housekeeping_interval_seconds=0.05) as scheduler:
        job = world.submit()
        scheduler.wake()
        wait_until(lambda: world.store.find_request(job.owner, job.request_id) is None, 20.0, "the job's deletion")


def test_heartbeats_age_until_the_next_one(world: World) -> None:
    with running(world) as scheduler:
        assert scheduler.heartbeat_age_seconds() == 0.0
        world.submit("silent")
        scheduler.wake()
        wait_until(lambda: scheduler.heartbeat_age_seconds() > 0.1, what="the age of a silent worker")
        assert isinstance(world.upload(b"x"), ArtifactRef)
