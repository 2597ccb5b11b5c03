"""What every JobStore must do."""

from __future__ import annotations

import base64
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from helpers.stores import FAILURE, OWNER, RESULT, RETENTION_SECONDS, STRANGER, OpenStores, create_job, spec_for
from pruning_server.errors import (
    AlreadyExistsError,
    CapacityError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    Reason,
)
from pruning_server.jobs.events import LogEvent, ProgressEvent, Severity, StateEvent
from pruning_server.jobs.model import JobState, Progress
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import Limits, PruningSpec, ScalarArgument

LINE = LogEvent(severity=Severity.INFO, message="hello")
HALF = ProgressEvent(progress=Progress(phase=Phase.RECOVER, fraction=0.5, epoch=2, epochs=4, metrics={"loss": 0.25}))


# --- Submitting -------------------------------------------------------------------------------------------------------


def test_a_new_job_is_queued_and_its_first_event_says_so(stores: OpenStores) -> None:
    job = stores.submit(labels={"team": "vision"}, device="cuda", max_attempts=5)
    assert job == stores.jobs.get(OWNER, job.job_id) == stores.jobs.find_request(OWNER, "r")
    assert (job.state, job.attempt, job.max_attempts, job.device) == (JobState.QUEUED, 0, 5, "cuda")
    assert job.labels == {"team": "vision"}
    assert job.create_time == stores.clock.now()
    assert (job.start_time, job.end_time, job.expire_time, job.progress, job.failure, job.result) == (None,) * 6
    (event,) = stores.events(job.job_id)
    assert (event.sequence, event.time, event.payload) == (
        1,
        job.create_time,
        StateEvent(state=JobState.QUEUED, attempt=0),
    )
    assert job.last_sequence == 1


def test_the_same_request_returns_the_same_job_whatever_happened_since(stores: OpenStores) -> None:
    job = stores.run(labels={"a": "1", "b": "2"})
    again, created = create_job(stores.jobs, labels={"b": "2", "a": "1"}, queue_capacity=0)
    assert not created
    assert again == job


@pytest.mark.parametrize("changes", [{"spec": spec_for(sparsity=0.5)}, {"labels": {"x": "y"}}])
def test_a_request_id_with_another_spec_or_labels_is_refused(stores: OpenStores, changes: dict[str, object]) -> None:
    job = stores.submit()
    with pytest.raises(AlreadyExistsError) as caught:
        create_job(stores.jobs, **changes)
    assert caught.value.reason is Reason.REQUEST_ID_REUSED
    assert caught.value.metadata == {"job_id": job.job_id}


def test_values_that_are_equal_only_in_python_are_different_specs(stores: OpenStores) -> None:
    def spec(value: float) -> object:
        return type(spec_for())(
            model=spec_for().model,
            validation=spec_for().validation,
            strategy=spec_for().strategy,
            arguments=(ScalarArgument(position=1, value=value),),
        )

    stores.submit(spec=spec(1))
    for other in (True, 1.0):
        with pytest.raises(AlreadyExistsError):
            create_job(stores.jobs, spec=spec(other))
    assert not create_job(stores.jobs, spec=spec(1))[1]


def test_request_ids_of_two_owners_are_strangers(stores: OpenStores) -> None:
    mine, theirs = stores.submit(), stores.submit(owner=STRANGER, spec=spec_for(sparsity=0.1))
    assert mine.job_id != theirs.job_id
    assert stores.jobs.find_request(STRANGER, "r") == theirs
    assert stores.jobs.find_request(OWNER, "other") is None


def test_an_empty_request_id_is_refused(stores: OpenStores) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        create_job(stores.jobs, "")
    assert caught.value.violations[0].field == "request_id"


def test_a_full_queue_refuses_and_says_when_to_come_back(stores: OpenStores) -> None:
    stores.run("running", queue_capacity=2)
    stores.submit("1", queue_capacity=2)
    stores.submit("2", queue_capacity=2)
    with pytest.raises(CapacityError) as caught:
        create_job(stores.jobs, "3", queue_capacity=2)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert (caught.value.retry_after_seconds or 0) > 0
    assert stores.jobs.find_request(OWNER, "3") is None
    assert stores.jobs.claim(("cpu",), "server-1") is not None
    assert create_job(stores.jobs, "3", queue_capacity=2)[1]


def test_a_spec_that_json_cannot_carry_is_refused_and_leaves_nothing(stores: OpenStores) -> None:
    with pytest.raises(ValueError, match="cannot be stored"):
        create_job(stores.jobs, spec=spec_for(sparsity=math.nan))
    assert stores.jobs.list(OWNER, frozenset(), {}, 10, "") == ((), "")


def test_eight_threads_with_one_request_id_make_one_job(stores: OpenStores) -> None:
    together = threading.Barrier(8)

    def submit(_: int) -> tuple[str, bool]:
        together.wait(timeout=10)
        job, created = create_job(stores.jobs)
        return job.job_id, created

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(submit, range(8)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    assert len(stores.jobs.list(OWNER, frozenset(), {}, 10, "")[0]) == 1


# --- Running ----------------------------------------------------------------------------------------------------------


def test_claiming_takes_the_oldest_and_starts_an_attempt(stores: OpenStores) -> None:
    first, second = stores.submit("1"), stores.submit("2")
    stores.clock.advance(5)
    claimed = [stores.jobs.claim(("cpu",), "server-1") for _ in range(3)]
    assert [None if item is None else (item[0].job_id, item[1]) for item in claimed] == [
        (first.job_id, "cpu"),
        (second.job_id, "cpu"),
        None,
    ]
    job = stores.jobs.get(OWNER, first.job_id)
    assert (job.state, job.attempt, job.start_time) == (JobState.RUNNING, 1, stores.clock.now())
    assert stores.events(job.job_id)[-1].payload == StateEvent(state=JobState.RUNNING, attempt=1)


def test_the_oldest_goes_first_even_if_the_clock_went_back(stores: OpenStores) -> None:
    first = stores.submit("1")
    stores.clock.advance(-3600)
    stores.submit("2")
    claimed = stores.jobs.claim(("cpu",), "server-1")
    assert claimed is not None
    assert claimed[0].job_id == first.job_id


@pytest.mark.parametrize(
    ("wanted", "free", "given"),
    [
        ("cpu", ("cpu",), "cpu"),
        ("cpu", ("cuda:0",), None),
        ("cpu", (), None),
        ("cuda", ("cpu",), None),
        ("cuda", ("cpu", "cuda:1", "cuda:0"), "cuda:1"),
        ("cuda:1", ("cuda:0",), None),
        ("cuda:1", ("cuda:0", "cuda:1"), "cuda:1"),
        ("cuda:1", ("cuda:10",), None),
    ],
)
def test_a_job_gets_a_device_that_can_serve_it(
    stores: OpenStores, wanted: str, free: tuple[str, ...], given: str | None
) -> None:
    stores.submit(device=wanted)
    claimed = stores.jobs.claim(free, "server-1")
    assert (None if claimed is None else claimed[1]) == given


def test_a_job_whose_device_is_busy_does_not_hold_up_the_others(stores: OpenStores) -> None:
    stores.submit("1", device="cuda")
    second = stores.submit("2", device="cpu")
    claimed = stores.jobs.claim(("cpu",), "server-1")
    assert claimed is not None
    assert claimed[0].job_id == second.job_id


def claims(stores: OpenStores, count: int, **options: int) -> list[str]:
    """The request ids in the order in which jobs start while nothing ends."""
    found = [stores.jobs.claim(("cpu",), "server-1", **options) for _ in range(count)]
    return [claim[0].request_id for claim in found if claim is not None]


def test_owners_take_turns(stores: OpenStores) -> None:
    """Who has queued many jobs does not make another one wait for all of them."""
    for number in range(4):
        stores.submit(f"a{number}")
    for number in range(2):
        stores.submit(f"b{number}", owner=STRANGER)
    assert claims(stores, 7) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_who_was_served_longest_ago_is_next(stores: OpenStores) -> None:
    """Also where nothing runs any more, so that turns are remembered."""
    for number in range(3):
        stores.submit(f"a{number}")
        stores.submit(f"b{number}", owner=STRANGER)
        stores.submit(f"c{number}", owner="owner-c")
    order = []
    while claim := stores.jobs.claim(("cpu",), "server-1"):
        order.append(claim[0].request_id)
        stores.jobs.succeed(claim[0].job_id, 1, RESULT)
    assert order == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_an_owner_runs_no_more_than_the_quota_at_a_time(stores: OpenStores) -> None:
    jobs = [stores.submit(f"a{number}") for number in range(4)]
    stores.submit("b0", owner=STRANGER)
    assert claims(stores, 9, max_running_per_owner=2) == ["a0", "b0", "a1"]
    stores.jobs.request_cancel(OWNER, jobs[0].job_id)
    assert claims(stores, 9, max_running_per_owner=2) == [], "a worker that is being ended still runs"
    stores.jobs.succeed(jobs[1].job_id, 1, RESULT)
    assert claims(stores, 9, max_running_per_owner=2) == ["a2"]


def prioritized(priority: int) -> PruningSpec:
    return structs.replace(spec_for(), limits=Limits(priority=priority))


def test_priority_counts_among_an_owners_own_jobs(stores: OpenStores) -> None:
    for request_id, priority in (("low", -1), ("first", 0), ("second", 0), ("high", 1), ("higher", 10)):
        stores.submit(request_id, spec=prioritized(priority))
    stores.submit("b0", owner=STRANGER)
    assert claims(stores, 9) == ["higher", "b0", "high", "first", "second", "low"]


def test_no_job_waits_for_ever_behind_higher_ones(stores: OpenStores) -> None:
    """A step of priority is worth 100 places: the hundred and first later submission does not overtake."""
    stores.submit("old")
    for number in range(102):
        stores.submit(f"new{number}", spec=prioritized(1))
    order = claims(stores, 103)
    assert order.index("old") == 99, "it is overtaken by those that came less than a hundred places later"
    assert [name for name in order if name != "old"] == [f"new{number}" for number in range(102)]


def test_an_owner_queues_no_more_than_the_quota(stores: OpenStores) -> None:
    for number in range(2):
        create_job(stores.jobs, f"a{number}", max_queued_per_owner=2)
    for refuse in (
        lambda: create_job(stores.jobs, "a2", max_queued_per_owner=2),
        lambda: stores.jobs.check_capacity(OWNER, 1000, 2),
    ):
        with pytest.raises(CapacityError) as caught:
            refuse()
        assert (caught.value.reason, caught.value.quota) == (Reason.QUOTA_EXCEEDED, "queued_jobs")
        assert caught.value.retry_after_seconds
    create_job(stores.jobs, "b0", owner=STRANGER, max_queued_per_owner=2)
    assert not create_job(stores.jobs, "a0", max_queued_per_owner=2)[1], "what was accepted stays so"
    stores.jobs.claim(("cpu",), "server-1")
    create_job(stores.jobs, "a2", max_queued_per_owner=2)


def test_without_an_owner_all_jobs_are_listed(stores: OpenStores) -> None:
    stores.submit("a0")
    stores.submit("b0", owner=STRANGER)
    assert {job.request_id for job in stores.jobs.list(None, frozenset(), {}, 10, "")[0]} == {"a0", "b0"}


def test_eight_threads_claim_every_job_once(stores: OpenStores) -> None:
    ids = {stores.submit(str(number)).job_id for number in range(24)}

    def claim(_: int) -> list[str]:
        mine = []
        while (claimed := stores.jobs.claim(("cpu",), "server-1")) is not None:
            mine.append(claimed[0].job_id)
        return mine

    with ThreadPoolExecutor(8) as threads:
        claimed = [job_id for mine in threads.map(claim, range(8)) for job_id in mine]
    assert sorted(claimed) == sorted(ids)


def test_what_a_run_reports_is_kept_and_numbered(stores: OpenStores) -> None:
    job = stores.run()
    first, second = (stores.jobs.append_event(job.job_id, 1, payload) for payload in (LINE, HALF))
    assert first is not None
    assert second is not None
    assert [first.sequence, second.sequence] == [3, 4]
    assert stores.jobs.events_after(job.job_id, 2, 10) == (first, second)
    assert stores.jobs.events_after(job.job_id, 2, 1) == (first,)
    assert stores.jobs.events_after(job.job_id, 4, 10) == ()
    assert stores.jobs.events_after(job.job_id, 0, 0) == ()
    assert stores.jobs.events_after("0" * 32, 0, 10) == ()
    after = stores.jobs.get(OWNER, job.job_id)
    assert after.progress == HALF.progress
    assert after.last_sequence == 4


def test_a_run_that_is_over_cannot_report(stores: OpenStores) -> None:
    job = stores.run()
    assert stores.jobs.append_event(job.job_id, 2, LINE) is None
    assert stores.jobs.append_event("0" * 32, 1, LINE) is None
    stores.jobs.fail(job.job_id, 1, FAILURE, retry=True)
    assert stores.jobs.append_event(job.job_id, 1, LINE) is None
    stores.jobs.claim(("cpu",), "server-1")
    assert stores.jobs.append_event(job.job_id, 1, LINE) is None
    assert stores.jobs.append_event(job.job_id, 2, LINE) is not None
    stores.jobs.request_cancel(OWNER, job.job_id)
    assert stores.jobs.append_event(job.job_id, 2, LINE) is not None, "the worker still runs"
    stores.jobs.succeed(job.job_id, 2, RESULT)
    assert stores.jobs.append_event(job.job_id, 2, LINE) is None


def test_states_cannot_be_appended(stores: OpenStores) -> None:
    job = stores.run()
    with pytest.raises(TypeError):
        stores.jobs.append_event(job.job_id, 1, StateEvent(state=JobState.SUCCEEDED, attempt=1))


def test_progress_that_json_cannot_carry_does_not_spoil_the_job(stores: OpenStores) -> None:
    job = stores.run()
    bad = ProgressEvent(progress=Progress(phase=Phase.LOAD, fraction=math.nan))
    with pytest.raises(ValueError, match="cannot be stored"):
        stores.jobs.append_event(job.job_id, 1, bad)
    assert stores.jobs.get(OWNER, job.job_id) == job


# --- Ending -----------------------------------------------------------------------------------------------------------


def test_success(stores: OpenStores) -> None:
    job = stores.run()
    stores.clock.advance(60)
    done = stores.jobs.succeed(job.job_id, 1, RESULT)
    assert done == stores.jobs.get(OWNER, job.job_id)
    assert (done.state, done.result, done.failure) == (JobState.SUCCEEDED, RESULT, None)
    assert (done.end_time, done.expire_time) == (stores.clock.now(), stores.clock.now() + RETENTION_SECONDS)
    assert stores.states(job.job_id) == [JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED]


def test_success_completes_the_progress_and_failure_leaves_it(stores: OpenStores) -> None:
    for key, end, fraction in (
        ("1", lambda job: stores.jobs.succeed(job.job_id, 1, RESULT), 1.0),
        ("2", lambda job: stores.jobs.fail(job.job_id, 1, FAILURE, retry=False), 0.5),
    ):
        job = stores.run(key)
        stores.jobs.append_event(job.job_id, 1, HALF)
        progress = end(job).progress
        assert progress is not None
        assert progress.fraction == fraction


def test_failure_without_retry_keeps_what_the_run_made(stores: OpenStores) -> None:
    job = stores.run()
    done = stores.jobs.fail(job.job_id, 1, FAILURE, retry=False, result=RESULT)
    assert (done.state, done.failure, done.result) == (JobState.FAILED, FAILURE, RESULT)
    assert stores.events(job.job_id)[-1].payload == StateEvent(state=JobState.FAILED, attempt=1, failure=FAILURE)


def test_retries_until_the_attempts_are_spent(stores: OpenStores) -> None:
    job = stores.run(max_attempts=2)
    first_start = job.start_time
    stores.jobs.append_event(job.job_id, 1, HALF)
    stores.clock.advance(10)
    queued = stores.jobs.fail(job.job_id, 1, FAILURE, retry=True, result=RESULT)
    assert (queued.state, queued.attempt, queued.progress, queued.failure, queued.result, queued.end_time) == (
        JobState.QUEUED,
        1,
        None,
        None,
        None,
        None,
    )
    assert stores.events(job.job_id)[-1].payload == StateEvent(state=JobState.QUEUED, attempt=1, failure=FAILURE)
    claimed = stores.jobs.claim(("cpu",), "server-1")
    assert claimed is not None
    assert (claimed[0].attempt, claimed[0].start_time) == (2, first_start)
    assert stores.jobs.fail(job.job_id, 2, FAILURE, retry=True).state is JobState.FAILED
    assert stores.jobs.claim(("cpu",), "server-1") is None


def test_a_job_that_is_queued_again_keeps_its_place(stores: OpenStores) -> None:
    job = stores.run("1")
    stores.submit("2")
    stores.jobs.fail(job.job_id, 1, FAILURE, retry=True)
    claimed = stores.jobs.claim(("cpu",), "server-1")
    assert claimed is not None
    assert claimed[0].job_id == job.job_id


def test_a_terminal_state_is_written_once(stores: OpenStores) -> None:
    job = stores.run()
    done = stores.jobs.succeed(job.job_id, 1, RESULT)
    stores.clock.advance(1)
    late = [
        stores.jobs.fail(job.job_id, 1, FAILURE, retry=True),
        stores.jobs.fail(job.job_id, 1, FAILURE, retry=False),
        stores.jobs.succeed(job.job_id, 1, RESULT),
        stores.jobs.release(job.job_id, 1, FAILURE),
        stores.jobs.request_cancel(OWNER, job.job_id),
        stores.jobs.get(OWNER, job.job_id),
    ]
    assert late == [done] * len(late)
    assert stores.jobs.fail_unservable((), FAILURE) == ()
    assert stores.jobs.recover("server-2") == ()


def test_a_worker_of_an_earlier_attempt_changes_nothing(stores: OpenStores) -> None:
    job = stores.run()
    stores.jobs.fail(job.job_id, 1, FAILURE, retry=True)
    claimed = stores.jobs.claim(("cpu",), "server-1")
    assert claimed is not None
    assert stores.jobs.succeed(job.job_id, 1, RESULT) == claimed[0]
    assert stores.jobs.fail(job.job_id, 1, FAILURE, retry=False) == claimed[0]
    assert stores.jobs.release(job.job_id, 1, FAILURE) == claimed[0]


def test_cancelling_a_queued_job_ends_it(stores: OpenStores) -> None:
    job = stores.submit()
    done = stores.jobs.request_cancel(OWNER, job.job_id)
    assert (done.state, done.end_time) == (JobState.CANCELLED, stores.clock.now())
    assert stores.jobs.claim(("cpu",), "server-1") is None


@pytest.mark.parametrize("ending", ["succeed", "fail", "release", "recover"])
def test_who_asked_to_cancel_gets_cancelled_whatever_the_worker_managed(stores: OpenStores, ending: str) -> None:
    job = stores.run()
    assert stores.jobs.request_cancel(OWNER, job.job_id).state is JobState.CANCELLING
    assert stores.jobs.request_cancel(OWNER, job.job_id).state is JobState.CANCELLING
    match ending:
        case "succeed":
            stores.jobs.succeed(job.job_id, 1, RESULT)
        case "fail":
            stores.jobs.fail(job.job_id, 1, FAILURE, retry=True, result=RESULT)
        case "release":
            stores.jobs.release(job.job_id, 1, FAILURE)
        case _:
            stores.jobs.recover("server-2")
    done = stores.jobs.get(OWNER, job.job_id)
    assert (done.state, done.result, done.failure) == (JobState.CANCELLED, None, None)
    assert stores.states(job.job_id) == [
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.CANCELLING,
        JobState.CANCELLED,
    ]


def test_releasing_gives_the_attempt_back(stores: OpenStores) -> None:
    job = stores.run(max_attempts=1)
    released = stores.jobs.release(job.job_id, 1, FAILURE)
    assert (released.state, released.attempt, released.max_attempts) == (JobState.QUEUED, 1, 2)
    assert stores.jobs.release(job.job_id, 1, FAILURE) == released
    claimed = stores.jobs.claim(("cpu",), "server-1")
    assert claimed is not None
    assert stores.jobs.fail(job.job_id, 2, FAILURE, retry=True).state is JobState.FAILED


def test_jobs_that_no_device_can_serve_fail(stores: OpenStores) -> None:
    jobs = {device: stores.submit(device, device=device) for device in ("cpu", "cuda", "cuda:0", "cuda:1")}
    failed = stores.jobs.fail_unservable(("cpu", "cuda:1"), FAILURE)
    assert [(job.job_id, job.state, job.failure) for job in failed] == [
        (jobs["cuda:0"].job_id, JobState.FAILED, FAILURE)
    ]
    failed = stores.jobs.fail_unservable(("cpu",), FAILURE)
    assert {job.device for job in failed} == {"cuda", "cuda:1"}


def test_recovery_settles_the_runs_of_dead_servers_only(stores: OpenStores) -> None:
    retried, spent = stores.run("1", max_attempts=2), stores.run("2", max_attempts=1)
    stores.submit("3")
    claimed = stores.jobs.claim(("cpu",), "server-2")
    assert claimed is not None
    settled = {job.job_id: job for job in stores.jobs.recover("server-2")}
    assert settled.keys() == {retried.job_id, spent.job_id}
    assert settled[retried.job_id].state is JobState.QUEUED
    failure = settled[spent.job_id].failure
    assert settled[spent.job_id].state is JobState.FAILED
    assert failure is not None
    assert failure.reason is Reason.WORKER_LOST
    assert "attempt 1 of 1" in failure.message
    event = stores.events(retried.job_id)[-1].payload
    assert isinstance(event, StateEvent)
    assert event.failure is not None
    assert "queued again" in event.failure.message
    assert stores.jobs.get(OWNER, claimed[0].job_id) == claimed[0]
    assert stores.jobs.recover("server-2") == ()


def test_a_clock_that_went_back_does_not_end_a_job_before_it_began(stores: OpenStores) -> None:
    job = stores.run()
    stores.clock.advance(-1000)
    assert stores.jobs.succeed(job.job_id, 1, RESULT).end_time == job.start_time


# --- Watching ---------------------------------------------------------------------------------------------------------


def test_every_new_event_is_announced_after_it_can_be_read(stores: OpenStores) -> None:
    job = stores.run()
    stores.jobs.append_event(job.job_id, 1, LINE)
    stores.jobs.succeed(job.job_id, 1, RESULT)
    assert stores.announced == [job.job_id] * 4
    stores.jobs.succeed(job.job_id, 1, RESULT)
    stores.jobs.append_event(job.job_id, 1, LINE)
    create_job(stores.jobs)
    assert stores.announced == [job.job_id] * 4, "nothing new, nothing announced"
    assert len(stores.events(job.job_id)) == 4


# --- Listing ----------------------------------------------------------------------------------------------------------


def pages(stores: OpenStores, page_size: int, **filters: object) -> list[list[str]]:
    found, token = [], ""
    while True:
        page, token = stores.jobs.list(
            OWNER,
            filters.get("states", frozenset()),  # type: ignore[arg-type]
            filters.get("labels", {}),  # type: ignore[arg-type]
            page_size,
            token,
        )
        found.append([job.request_id for job in page])
        if not token:
            return found


def test_pages_are_whole_newest_first_and_survive_equal_times(stores: OpenStores) -> None:
    for number in range(7):
        stores.submit(str(number))
        if number % 3 == 0:
            stores.clock.advance(1)
    stores.submit("other", owner=STRANGER)
    for page_size in (1, 2, 3, 7, 8):
        found = pages(stores, page_size)
        flat = [request_id for page in found for request_id in page]
        assert sorted(flat) == list("0123456")
        times = [stores.jobs.find_request(OWNER, request_id) for request_id in flat]
        created = [job.create_time for job in times if job is not None]
        assert created == sorted(created, reverse=True)
        assert all(len(page) == page_size for page in found[:-1])
        assert found[-1] != []


def test_a_job_that_comes_meanwhile_does_not_move_the_pages(stores: OpenStores) -> None:
    for number in range(4):
        stores.submit(str(number))
        stores.clock.advance(1)
    page, token = stores.jobs.list(OWNER, frozenset(), {}, 2, "")
    stores.submit("new")
    rest, end = stores.jobs.list(OWNER, frozenset(), {}, 2, token)
    assert [job.request_id for job in (*page, *rest)] == ["3", "2", "1", "0"]
    assert end == ""


def test_filters(stores: OpenStores) -> None:
    stores.run("1", labels={"team": "a", "kind": 'quote " and \u00fc'})
    stores.clock.advance(1)
    stores.submit("2", labels={"team": "a"})
    stores.submit("3", labels={"team": "b"})
    assert pages(stores, 1, labels={"team": "a"}) == [["2"], ["1"]]
    assert pages(stores, 10, labels={"kind": 'quote " and \u00fc'}) == [["1"]]
    assert pages(stores, 10, labels={"team": "a", "kind": "x"}) == [[]]
    assert pages(stores, 10, states=frozenset({JobState.RUNNING})) == [["1"]]
    both = pages(stores, 10, states=frozenset({JobState.QUEUED, JobState.RUNNING}), labels={"team": "b"})
    assert both == [["3"]]


def test_the_page_size_has_a_default_and_a_cap(stores: OpenStores) -> None:
    for number in range(105):
        stores.submit(str(number))
    assert [len(page) for page in pages(stores, 0)] == [100, 5]
    assert [len(page) for page in pages(stores, 10**9)] == [105]
    assert len(stores.jobs.list(OWNER, frozenset(), {}, -5, "")[0]) == 1


@given(
    token=st.one_of(
        st.text(min_size=1),
        st.binary(min_size=1).map(lambda data: base64.urlsafe_b64encode(data).decode()),
        st.sampled_from(
            [b"{}", b"[]", b'{"create_time":null,"row_id":"x"}', b'{"create_time":1,"row_id":"\\ud800"}']
        ).map(lambda data: base64.urlsafe_b64encode(data).decode()),
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokens_that_are_not_ours_are_refused(stores: OpenStores, token: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        stores.jobs.list(OWNER, frozenset(), {}, 10, token)
    assert caught.value.reason is Reason.INVALID_PAGE_TOKEN


# --- Counting and deleting --------------------------------------------------------------------------------------------


def test_counts_have_every_state_as_a_key(stores: OpenStores) -> None:
    assert stores.jobs.counts_by_state() == dict.fromkeys(JobState, 0)
    assert stores.jobs.oldest_queued_time() is None
    stores.run("1")
    oldest = stores.submit("2")
    stores.clock.advance(5)
    stores.submit("3")
    assert stores.jobs.counts_by_state() == dict.fromkeys(JobState, 0) | {JobState.RUNNING: 1, JobState.QUEUED: 2}
    assert stores.jobs.oldest_queued_time() == oldest.create_time


def test_nobody_else_can_see_or_touch_a_job(stores: OpenStores) -> None:
    job = stores.submit()
    for call in (stores.jobs.get, stores.jobs.request_cancel, stores.jobs.delete):
        with pytest.raises(NotFoundError) as caught:
            call(STRANGER, job.job_id)
        assert caught.value.reason is Reason.JOB_NOT_FOUND
    assert stores.jobs.list(STRANGER, frozenset(), {}, 10, "") == ((), "")
    assert stores.jobs.get(None, job.job_id) == job
    with pytest.raises(NotFoundError):
        stores.jobs.get(None, "0" * 32)
    with pytest.raises(NotFoundError):
        stores.jobs.succeed("0" * 32, 1, RESULT)


def test_only_a_job_that_has_ended_can_be_deleted(stores: OpenStores) -> None:
    job = stores.run()
    with pytest.raises(PreconditionError) as caught:
        stores.jobs.delete(OWNER, job.job_id)
    assert caught.value.reason is Reason.JOB_NOT_TERMINAL
    stores.jobs.succeed(job.job_id, 1, RESULT)
    stores.jobs.delete(OWNER, job.job_id)
    with pytest.raises(NotFoundError):
        stores.jobs.get(OWNER, job.job_id)
    assert stores.events(job.job_id) == ()
    assert stores.jobs.find_request(OWNER, "r") is None
    assert create_job(stores.jobs)[1], "the request_id is free again"


def test_expired_jobs_go_and_the_others_stay(stores: OpenStores) -> None:
    old = stores.run("old")
    stores.jobs.succeed(old.job_id, 1, RESULT)
    stores.clock.advance(RETENTION_SECONDS / 2)
    young = stores.run("young")
    stores.jobs.fail(young.job_id, 1, FAILURE, retry=False)
    queued = stores.submit("queued")
    assert stores.jobs.delete_expired() == 0
    stores.clock.advance(RETENTION_SECONDS / 2)
    assert stores.jobs.delete_expired() == 1
    assert {job.job_id for job in stores.jobs.list(OWNER, frozenset(), {}, 10, "")[0]} == {young.job_id, queued.job_id}
    assert stores.events(old.job_id) == ()
    stores.clock.advance(100 * RETENTION_SECONDS)
    assert stores.jobs.delete_expired() == 1
    assert stores.jobs.get(OWNER, queued.job_id) == queued
