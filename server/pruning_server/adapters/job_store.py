"""Jobs and their events in SQLite."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence

from pruning_server.adapters import job_queries as queries
from pruning_server.adapters import job_rows as rows
from pruning_server.adapters.artifact_references import release_results
from pruning_server.adapters.database import Database
from pruning_server.adapters.job_transitions import (
    Change,
    can_serve,
    on_cancel_request,
    on_dead_server,
    on_failure,
    on_release,
    on_success,
)
from pruning_server.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    PreconditionError,
    Reason,
)
from pruning_server.jobs.events import Event, EventPayload, LogEvent, ProgressEvent, Severity, StateEvent
from pruning_server.jobs.model import Failure, Job, JobState, Result
from pruning_server.jobs.ports import Clock
from pruning_server.spec.base import to_json
from pruning_server.spec.request import PruningSpec

# Bounds on what a run may write. They are far above what a caller wants to read, and keep a job to a few megabytes.
MAX_LOG_EVENTS_PER_JOB = 10_000
MAX_PROGRESS_EVENTS_PER_ATTEMPT = 5_000
SPARSE_PROGRESS_SECONDS = 30.0


class SqliteJobStore:
    """Fills `jobs.ports.JobStore`; safe to use from any thread.

    Args:
        database: where jobs lie, together with the artifacts that they use.
        clock: source of every time that is stored.
        retention_seconds: how long a job that has ended is kept, and at least its artifacts.
        on_change: called with a job's id after each commit that added an event of it, by the thread that committed.
            Must be quick and must not raise.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        retention_seconds: float,
        *,
        on_change: Callable[[str], None] | None = None,
        max_log_events_per_job: int = MAX_LOG_EVENTS_PER_JOB,
        max_progress_events_per_attempt: int = MAX_PROGRESS_EVENTS_PER_ATTEMPT,
    ) -> None:
        self._database = database
        self._clock = clock
        self._retention_seconds = retention_seconds
        self._on_change = on_change
        self._max_log_events = max_log_events_per_job
        self._max_progress_events = max_progress_events_per_attempt

    # --- callers ------------------------------------------------------------------------------------------------------

    def create(
        self,
        *,
        owner: str,
        request_id: str,
        spec: PruningSpec,
        labels: Mapping[str, str],
        device: str,
        max_attempts: int,
        queue_capacity: int,
        max_queued_per_owner: int | None = None,
    ) -> tuple[Job, bool]:
        """Queues a job and returns (job, created); the same request_id, spec and labels return the earlier one.

        Raises:
            InvalidRequestError: request_id is empty.
            AlreadyExistsError: the request_id came before, with another spec or other labels.
            CapacityError: `queue_capacity` jobs are queued, or `max_queued_per_owner` of this owner.
        """
        if not request_id:
            raise InvalidRequestError.for_field("request_id", "is needed; send a new UUID", Reason.MISSING_FIELD)
        with self._database.write() as connection:
            earlier = queries.find_request(connection, owner, request_id)
            if earlier is not None:
                _check_same(earlier, spec, labels)
                return earlier, False
            queries.check_capacity(connection, owner, queue_capacity, max_queued_per_owner)
            now = self._clock.now()
            job = Job(
                job_id=uuid.uuid4().hex,
                owner=owner,
                request_id=request_id,
                spec=spec,
                device=device,
                state=JobState.QUEUED,
                attempt=0,
                max_attempts=max_attempts,
                create_time=now,
                labels=dict(labels),
            )
            job = rows.insert_job(connection, job, keep_inputs_until=now + self._retention_seconds)
        self._announce(job)
        return job, True

    def check_capacity(self, owner: str, queue_capacity: int, max_queued_per_owner: int | None) -> None:
        """Raises CapacityError where `create` would, as things are now."""
        with self._database.read() as connection:
            queries.check_capacity(connection, owner, queue_capacity, max_queued_per_owner)

    def find_request(self, owner: str, request_id: str) -> Job | None:
        """Returns the job that this request_id made, if it is still stored."""
        with self._database.read() as connection:
            return queries.find_request(connection, owner, request_id)

    def get(self, owner: str | None, job_id: str) -> Job:
        """Returns the job, or raises NotFoundError; owner None sees all."""
        with self._database.read() as connection:
            return queries.load_job(connection, job_id, owner)

    def list(
        self,
        owner: str | None,
        states: frozenset[JobState],
        labels: Mapping[str, str],
        page_size: int,
        page_token: str,
    ) -> tuple[Sequence[Job], str]:
        """Returns a page, newest first, and the token of the next one (empty: none); no states means all; owner None: all.

        Raises:
            InvalidRequestError: the token is not one of ours.
        """
        with self._database.read() as connection:
            return queries.list_jobs(connection, owner, states, labels, page_size, page_token)

    def request_cancel(self, owner: str | None, job_id: str) -> Job:
        """QUEUED -> CANCELLED, RUNNING -> CANCELLING; terminal and CANCELLING jobs stay as they are."""
        return self._change(job_id, on_cancel_request, owner)

    def delete(self, owner: str | None, job_id: str) -> None:
        """Deletes a terminal job and its events, and releases the files that only it made.

        Raises:
            NotFoundError: there is no such job.
            PreconditionError: it has not ended; cancel it first.
        """
        with self._database.write() as connection:
            job = queries.load_job(connection, job_id, owner)
            if not job.state.is_terminal:
                raise PreconditionError(
                    Reason.JOB_NOT_TERMINAL,
                    f"job {job_id} is {job.state}; cancel it and wait until it has ended, then delete it",
                    metadata={"state": job.state.value},
                )
            self._delete(connection, job_id)

    # --- the scheduler ------------------------------------------------------------------------------------------------

    def claim(
        self, free_devices: Sequence[str], lease_owner: str, max_running_per_owner: int | None = None
    ) -> tuple[Job, str] | None:
        """Moves the queued job whose turn it is and that a free device can serve to RUNNING, attempt + 1.

        Owners take turns, and an owner's jobs go by priority and age: `job_queries.next_row`. A job that was queued again
        keeps its place. Returns the job and its device: the first of `free_devices` that can serve it is taken.
        """
        wanted = set(free_devices) | ({"cuda"} if any(can_serve(device, "cuda") for device in free_devices) else set())
        with self._database.write() as connection:
            row = queries.next_row(connection, wanted, max_running_per_owner)
            if row is None:
                return None
            job = rows.read_job(row)
            device = next(device for device in free_devices if can_serve(device, job.device))
            job = rows.start_run(connection, job, device, lease_owner, self._clock.now())
            queries.note_turn(connection, job.owner)
        self._announce(job)
        return job, device

    def append_event(self, job_id: str, attempt: int, payload: EventPayload) -> Event | None:
        """Adds an event of a run; None (and nothing stored) once that run is over.

        Bounded: after 10,000 log lines of a job, a last one says that no more are kept; after 5,000 progress events of
        an attempt, one is kept when the newest event is 30 seconds old (the job itself always has the latest). What is
        not kept answers with the newest event that was.

        Raises:
            TypeError: a StateEvent; those are written by the methods that change the state.
        """
        if isinstance(payload, StateEvent):
            raise TypeError("a StateEvent is written with the change of the state, not appended")
        with self._database.write() as connection:
            row = rows.find_row(connection, job_id)
            if row is None or row["attempt"] != attempt or row["lease_owner"] is None:
                return None
            event, added = self._append(connection, row, payload)
        if added and self._on_change is not None:
            self._on_change(job_id)
        return event

    def succeed(self, job_id: str, attempt: int, result: Result) -> Job:
        """RUNNING -> SUCCEEDED; CANCELLING -> CANCELLED; anything else, or another attempt, stays as it is."""
        return self._change(job_id, lambda job: on_success(job, attempt, result))

    def fail(self, job_id: str, attempt: int, failure: Failure, *, retry: bool, result: Result | None = None) -> Job:
        """RUNNING -> QUEUED if `retry` and attempts are left, else FAILED; CANCELLING -> CANCELLED."""
        return self._change(job_id, lambda job: on_failure(job, attempt, failure, retry=retry, result=result))

    def release(self, job_id: str, attempt: int, failure: Failure) -> Job:
        """RUNNING -> QUEUED without spending an attempt (`max_attempts` grows by one); CANCELLING -> CANCELLED."""
        return self._change(job_id, lambda job: on_release(job, attempt, failure))

    def fail_unservable(self, devices: Sequence[str], failure: Failure) -> Sequence[Job]:
        """QUEUED -> FAILED for every job that none of `devices` (`cpu`, `cuda:N`) can ever serve; returns them."""

        def change_of(row: sqlite3.Row) -> Change | None:
            servable = any(can_serve(device, row["device"]) for device in devices)
            return None if servable else Change(JobState.FAILED, failure=failure)

        return self._change_all((JobState.QUEUED,), change_of)

    def recover(self, lease_owner: str) -> Sequence[Job]:
        """At start: settles every run that another lease owner left; returns those jobs as they are then.

        CANCELLING -> CANCELLED; RUNNING -> QUEUED while attempts are left, else FAILED with WORKER_LOST.
        """

        def change_of(row: sqlite3.Row) -> Change | None:
            if row["lease_owner"] == lease_owner:
                return None
            return on_dead_server(rows.read_job(row), row["leased_device"])

        return self._change_all((JobState.RUNNING, JobState.CANCELLING), change_of)

    # --- watchers, metrics and housekeeping ---------------------------------------------------------------------------

    def events_after(self, job_id: str, sequence: int, limit: int) -> Sequence[Event]:
        """Events with a number above `sequence`, in order, at most `limit`; none for a job that is not stored."""
        with self._database.read() as connection:
            return queries.events_after(connection, job_id, sequence, limit)

    def delete_expired(self) -> int:
        """Deletes terminal jobs past their retention, and releases the files that only they made; returns how many."""
        now = self._clock.now()
        with self._database.read() as connection:
            found = connection.execute("SELECT job_id FROM jobs WHERE expire_time <= ? ORDER BY ordinal", (now,))
            expired = [str(row["job_id"]) for row in found]
        # One transaction per job: a long queue of them must not keep everybody else from writing.
        deleted = 0
        for job_id in expired:
            with self._database.write() as connection:
                deleted += self._delete(connection, job_id)
        return deleted

    def counts_by_state(self) -> Mapping[JobState, int]:
        """How many jobs are in each state; every state is a key."""
        with self._database.read() as connection:
            return queries.counts_by_state(connection)

    def oldest_queued_time(self) -> float | None:
        """Creation time of the job that waits longest; None: none waits."""
        with self._database.read() as connection:
            return queries.oldest_queued_time(connection)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _change(self, job_id: str, decide: Callable[[Job], Change | None], owner: str | None = None) -> Job:
        """Loads a job, decides, and writes the change with its event, in one transaction."""
        with self._database.write() as connection:
            job = queries.load_job(connection, job_id, owner)
            change = decide(job)
            if change is None:
                return job
            job = rows.apply_change(connection, job, change, self._clock.now(), self._retention_seconds)
        self._announce(job)
        return job

    def _change_all(
        self, states: tuple[JobState, ...], change_of: Callable[[sqlite3.Row], Change | None]
    ) -> Sequence[Job]:
        changed: list[Job] = []
        with self._database.write() as connection:
            now = self._clock.now()
            for row in rows.rows_in(connection, *states):
                change = change_of(row)
                if change is not None:
                    job = rows.read_job(row)
                    changed.append(rows.apply_change(connection, job, change, now, self._retention_seconds))
        for job in changed:
            self._announce(job)
        return tuple(changed)

    def _append(
        self, connection: sqlite3.Connection, row: sqlite3.Row, payload: ProgressEvent | LogEvent
    ) -> tuple[Event, bool]:
        """Stores the payload if the bounds allow it; returns (newest event, whether it is new)."""
        job, now = rows.read_job(row), self._clock.now()
        if isinstance(payload, LogEvent):
            if row["log_events"] < self._max_log_events:
                return rows.add_run_event(connection, job, payload, now), True
            if row["log_events"] == self._max_log_events:
                notice = f"No more lines of this job are kept: it has written {self._max_log_events}."
                line = LogEvent(severity=Severity.WARNING, message=notice)
                return rows.add_run_event(connection, job, line, now), True
            return queries.newest_event(connection, job), False
        newest = queries.newest_event(connection, job)
        if row["progress_events"] < self._max_progress_events or abs(now - newest.time) >= SPARSE_PROGRESS_SECONDS:
            return rows.add_run_event(connection, job, payload, now), True
        rows.set_progress(connection, job.job_id, payload.progress)
        return newest, False

    def _delete(self, connection: sqlite3.Connection, job_id: str) -> int:
        release_results(connection, job_id, self._clock.now())
        return connection.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,)).rowcount

    def _announce(self, job: Job) -> None:
        if self._on_change is not None:
            self._on_change(job.job_id)


def _check_same(earlier: Job, spec: PruningSpec, labels: Mapping[str, str]) -> None:
    # As JSON, because 1, 1.0 and True are equal in Python. The stored spec was read anew, so that a field that was
    # added to specs since has its default on both sides.
    if to_json((earlier.spec, earlier.labels)) != to_json((spec, dict(labels))):
        raise AlreadyExistsError(
            Reason.REQUEST_ID_REUSED,
            f"request_id {earlier.request_id!r} came before with another spec or other labels; send a new UUID",
            metadata={"job_id": earlier.job_id},
        )
