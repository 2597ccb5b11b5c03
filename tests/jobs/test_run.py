"""One run: messages become few durable events, an outcome becomes exactly one state, whatever fails meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from helpers.job_world import World
from pruning_server.errors import Reason
from pruning_server.jobs.devices import device_type
from pruning_server.jobs.events import (
    CountersAdded,
    LogEvent,
    LogWritten,
    PhaseFinished,
    PhaseStarted,
    ProgressEvent,
    ProgressMade,
    Severity,
    WorkerAlive,
    WorkerMessage,
)
from pruning_server.jobs.model import Failure, Job, JobState, Progress, Result
from pruning_server.jobs.ports import CancelToken, RunOutcome
from pruning_server.jobs.run import MAX_LOG_CHARACTERS, MAX_METRIC_CHARACTERS, MAX_METRICS, Run
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Verdict

Script = Callable[[Callable[[WorkerMessage], None], CancelToken], RunOutcome]

FAILURE = Failure(reason=Reason.WORKER_LOST, message="gone")


def failed(*, retryable: bool, cause: str = "lost") -> RunOutcome:
    return RunOutcome(result=None, failure=FAILURE, retryable=retryable, exit_cause=cause)


def cancelled() -> RunOutcome:
    failure = Failure(reason=Reason.CANCELLED, message="cancelled")
    return RunOutcome(result=None, failure=failure, retryable=False, exit_cause="cancelled")


def succeeded(world: World) -> RunOutcome:
    reference = world.upload(b"pruned")
    result = Result(
        model_artifact_id=reference.artifact_id,
        report_artifact_id=reference.artifact_id,
        verdict=Verdict.PASS,
        sparsity=0.5,
    )
    return RunOutcome(result=result, failure=None, retryable=False, exit_cause="ok")


class ScriptedExecutor:
    """An executor that does what a function says."""

    def __init__(self, script: Script) -> None:
        self.script = script

    def run(
        self, job: Job, device: str, on_message: Callable[[WorkerMessage], None], cancelled: CancelToken
    ) -> RunOutcome:
        assert device_type(device) == device_type(job.device)
        return self.script(on_message, cancelled)


class SetClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def run_of(world: World, script: Script, *, clock: Any = None, job: Job | None = None) -> Run:
    return Run(
        job or world.claimed(),
        "cpu",
        store=world.store,
        executor=ScriptedExecutor(script),
        metrics=world.metrics,
        clock=clock or world.clock,
    )


def progress(phase: Phase, fraction: float, epoch: int = 0, **metrics: float) -> ProgressMade:
    return ProgressMade(progress=Progress(phase=phase, fraction=fraction, epoch=epoch, epochs=5, metrics=metrics))


def events(world: World, run: Run, kind: type) -> list[Any]:
    found = world.store.events_after(run.job.job_id, 0, 10_000)
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    return [event.payload for event in found if isinstance(event.payload, kind)]


def test_progress_is_thinned_to_two_per_second_but_no_phase_or_epoch_is_lost(world: World) -> None:
    clock = SetClock()

    def script(send: Callable[[WorkerMessage], None], _stop: CancelToken) -> RunOutcome:
        for phase in Phase:
            send(PhaseStarted(phase=phase))
        for epoch in (1, 2, 3):
            for step in range(100):
                clock.time += 0.01
                send(progress(Phase.RECOVER, (epoch * 100 + step) / 400, epoch))
        return succeeded(world)

    run = run_of(world, script, clock=clock)
    run.execute()
    stored = [event.progress for event in events(world, run, ProgressEvent)]
    assert [p.phase for p in stored[:9]] == list(Phase)
    recovering = stored[9:]
    assert [p.epoch for p in recovering if p.epoch] == sorted(p.epoch for p in recovering)
    assert {p.epoch for p in recovering} == {1, 2, 3}
    assert 6 <= len(recovering) <= 10  # three seconds at two per second, three epochs, the last one
    assert recovering[-1].fraction == pytest.approx(399 / 400)


def test_epochs_of_a_millisecond_do_not_flood_the_store(world: World) -> None:
    clock = SetClock()

    def script(send: Callable[[WorkerMessage], None], _stop: CancelToken) -> RunOutcome:
        for epoch in range(1, 1001):
            clock.time += 0.001
            send(progress(Phase.RECOVER, epoch / 1000, epoch))
        return succeeded(world)

    run = run_of(world, script, clock=clock)
    run.execute()
    stored = [event.progress for event in events(world, run, ProgressEvent)]
    assert 15 <= len(stored) <= 25
    assert stored[-1].epoch == 1000


def test_waiting_progress_is_stored_with_the_next_heartbeat(world: World) -> None:
    clock = SetClock()

    def script(send: Callable[[WorkerMessage], None], _stop: CancelToken) -> RunOutcome:
        send(progress(Phase.RECOVER, 0.1, 1))
        send(progress(Phase.RECOVER, 0.2, 1))
        clock.time += 2.0
        send(WorkerAlive(rss_bytes=1))
        assert world.store.get(None, run.job.job_id).progress.fraction == 0.2
        return succeeded(world)

    run = run_of(world, script, clock=clock)
    assert run.execute().state is JobState.SUCCEEDED


def test_the_fraction_stays_in_its_range_and_never_goes_back(world: World) -> None:
    clock = SetClock()

    def script(send: Callable[[WorkerMessage], None], _stop: CancelToken) -> RunOutcome:
        for value in (0.3, 0.1, math.nan, 7.0, -1.0, math.inf):
            clock.time += 1.0
            send(progress(Phase.RECOVER, value, loss=math.nan, accuracy=0.5))
        return succeeded(world)

    run = run_of(world, script, clock=clock)
    run.execute()
    fractions = [event.progress.fraction for event in events(world, run, ProgressEvent)]
    assert fractions == sorted(fractions)
    assert all(0.0 <= fraction <= 1.0 for fraction in fractions)
    assert events(world, run, ProgressEvent)[0].progress.metrics == {"accuracy": 0.5}


def test_what_a_worker_may_add_to_a_job_is_bounded(world: World) -> None:
    names = {f"metric {index}": 1.0 for index in range(2 * MAX_METRICS)}
    too_long = {"x" * (MAX_METRIC_CHARACTERS + 1): 1.0}

    def script(send: Callable[[WorkerMessage], None], _stop: CancelToken) -> RunOutcome:
        send(progress(Phase.RECOVER, 0.1, 1, **too_long, **names))
        return succeeded(world)

    run = run_of(world, script)
    run.execute()
    [event] = events(world, run, ProgressEvent)
    assert event.progress.metrics == dict(list(names.items())[:MAX_METRICS])


def test_log_lines_are_kept_in_order_capped_and_without_terminal_codes(world: World) -> None:
    def script(send: Callable[[WorkerMessage], None], _stop: CancelToken) -> RunOutcome:
        send(LogWritten(severity=Severity.WARNING, text="\x1b[31mred\nline"))
        send(LogWritten(severity=Severity.INFO, text="x" * 100_000))
        return succeeded(world)

    run = run_of(world, script)
    run.execute()
    first, second = events(world, run, LogEvent)
    assert first.message == "\N{REPLACEMENT CHARACTER}[31mred\nline"
    assert first.severity is Severity.WARNING
    assert len(second.message) < MAX_LOG_CHARACTERS + 10


def test_work_is_counted(world: World) -> None:
    counters = CountersAdded(parameters_processed=3)

    def script(send: Callable[[WorkerMessage], None], _stop: CancelToken) -> RunOutcome:
        send(PhaseFinished(phase=Phase.LOAD, seconds=-1.0))
        send(counters)
        return succeeded(world)

    run = run_of(world, script)
    run.execute()
    assert world.metrics.of("phase_finished") == [(Phase.LOAD, 0.0)]
    assert world.metrics.of("worker_message") == [(counters, "static", "cpu")]
    assert world.metrics.of("worker_exited") == [("ok",)]
    [(completed, device)] = world.metrics.of("job_completed")
    assert (completed.state, device) == (JobState.SUCCEEDED, "cpu")


def test_the_queue_wait_of_a_retry_counts_from_its_requeueing(world: World) -> None:
    clock = SetClock()
    world.store._clock = clock
    job = world.submit()
    clock.time += 7.0
    claim = world.store.claim(["cpu"], "test")
    assert claim is not None
    run_of(world, lambda *_: failed(retryable=True), clock=clock, job=claim[0]).execute()
    clock.time += 3.0
    claim = world.store.claim(["cpu"], "test")
    assert claim is not None
    assert claim[0].job_id == job.job_id
    run_of(world, lambda *_: succeeded(world), clock=clock, job=claim[0]).execute()
    waits = [seconds for seconds, _ in world.metrics.of("job_started")]
    assert waits == pytest.approx([7.0, 3.0], abs=1e-6)


def test_a_passing_failure_is_tried_again_and_a_final_one_is_not(world: World) -> None:
    again = run_of(world, lambda *_: failed(retryable=True), job=world.claimed(max_attempts=2))
    assert again.execute().state is JobState.QUEUED
    claim = world.store.claim(["cpu"], "test")
    assert claim is not None
    last = run_of(world, lambda *_: failed(retryable=True), job=claim[0])
    assert last.execute().state is JobState.FAILED
    final = run_of(world, lambda *_: failed(retryable=False), job=world.claimed())
    assert final.execute().state is JobState.FAILED
    assert len(world.metrics.of("job_completed")) == 2


def test_a_missed_verdict_keeps_its_result(world: World) -> None:
    good = succeeded(world)
    missed = RunOutcome(result=good.result, failure=FAILURE, retryable=False, exit_cause="ok")
    settled = run_of(world, lambda *_: missed).execute()
    assert (settled.state, settled.result) == (JobState.FAILED, good.result)


def test_a_cancelled_run_is_cancelled_even_if_its_worker_finished_first(world: World) -> None:
    run = run_of(world, lambda *_: succeeded(world))
    world.store.request_cancel(run.job.owner, run.job.job_id)
    run.cancel()
    assert run.execute().state is JobState.CANCELLED
    assert len(world.metrics.of("cancel_finished")) == 1


def test_a_cancel_that_came_before_the_run_was_known_stops_it_at_once(world: World) -> None:
    def script(_send: Callable[[WorkerMessage], None], stop: CancelToken) -> RunOutcome:
        assert stop.is_set()
        return cancelled()

    run = run_of(world, script)
    world.store.request_cancel(run.job.owner, run.job.job_id)
    assert run.execute().state is JobState.CANCELLED


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_run_that_the_server_ended_costs_no_attempt(world: World, attempts: int) -> None:
    def script(_send: Callable[[WorkerMessage], None], stop: CancelToken) -> RunOutcome:
        run.release()
        assert stop.is_set()
        return cancelled()

    run = run_of(world, script, job=world.claimed(max_attempts=attempts))
    settled = run.execute()
    assert settled.state is JobState.QUEUED
    assert settled.max_attempts - settled.attempt == attempts
    assert world.metrics.of("job_completed") == []


def test_a_fault_of_the_server_does_not_leave_the_job_running(world: World) -> None:
    def script(*_: object) -> RunOutcome:
        raise RuntimeError("unforeseen")

    settled = run_of(world, script, job=world.claimed(max_attempts=1)).execute()
    assert (settled.state, settled.failure.reason) == (JobState.FAILED, Reason.INTERNAL)
    assert "unforeseen" not in settled.failure.message


def test_an_outcome_is_written_as_soon_as_the_store_can_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_server.jobs.run.SETTLE_BACKOFF_SECONDS", (0.001,))
    good = succeeded(world)
    real, tries = world.store.succeed, []

    def locked(*arguments: Any) -> Job:
        tries.append(arguments)
        if len(tries) < 5:
            raise RuntimeError("database is locked")
        return real(*arguments)

    monkeypatch.setattr(world.store, "succeed", locked)
    assert run_of(world, lambda *_: good).execute().state is JobState.SUCCEEDED
    assert len(tries) == 5


def test_an_event_that_cannot_be_stored_does_not_cost_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = world.store.append_event, [True]

    def append(*arguments: Any) -> Any:
        if full[0]:
            raise RuntimeError("database or disk is full")
        return real(*arguments)

    def script(send: Callable[[WorkerMessage], None], _stop: CancelToken) -> RunOutcome:
        send(progress(Phase.RECOVER, 0.5, 1))
        send(LogWritten(severity=Severity.INFO, text="lost"))
        full[0] = False
        send(LogWritten(severity=Severity.INFO, text="kept"))
        return succeeded(world)

    monkeypatch.setattr(world.store, "append_event", append)
    run = run_of(world, script)
    assert run.execute().state is JobState.SUCCEEDED
    assert [line.message for line in events(world, run, LogEvent)] == ["kept"]
    assert events(world, run, ProgressEvent)[-1].progress.fraction == 0.5


def test_a_server_that_stops_does_not_wait_for_a_store_that_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> Job:
        raise RuntimeError("no database")

    monkeypatch.setattr(world.store, "release", gone)
    run = run_of(world, lambda *_: cancelled())
    run.release()
    assert run.execute() is None
    assert world.get(run.job).state is JobState.RUNNING  # for `recover` at the next start
