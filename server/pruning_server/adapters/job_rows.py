"""The rows of jobs and their events: reading them as values, and writing changes inside the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from pruning_server.adapters.artifact_references import link_inputs, link_results
from pruning_server.adapters.job_transitions import Change
from pruning_server.jobs.events import Event, EventPayload, LogEvent, ProgressEvent, StateEvent
from pruning_server.jobs.model import TRANSITIONS, Failure, Job, JobState, Progress, Result
from pruning_server.spec.base import Value, from_json, to_json
from pruning_server.spec.request import PruningSpec

V = TypeVar("V")


def read_job(row: sqlite3.Row) -> Job:
    """Returns the job of a row."""
    return Job(
        job_id=row["job_id"],
        owner=row["owner"],
        request_id=row["request_id"],
        spec=from_json(row["spec"], PruningSpec),
        device=row["device"],
        state=JobState(row["state"]),
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        create_time=row["create_time"],
        start_time=row["start_time"],
        end_time=row["end_time"],
        expire_time=row["expire_time"],
        progress=_optional(row["progress"], Progress),
        failure=_optional(row["failure"], Failure),
        result=_optional(row["result"], Result),
        labels=from_json(row["labels"], dict[str, str]),
        last_sequence=row["last_sequence"],
    )


def read_event(row: sqlite3.Row) -> Event:
    """Returns the event of a row."""
    # mypy takes a union for an expression, not for a type; msgspec takes it as it is.
    payload: EventPayload = msgspec.json.decode(row["payload"], type=EventPayload)
    return Event(job_id=row["job_id"], sequence=row["sequence"], time=row["time"], payload=payload)


def find_row(connection: sqlite3.Connection, job_id: str, owner: str | None = None) -> sqlite3.Row | None:
    """Returns the row of a job, or None; also None where it is not this owner's; owner None sees all."""
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM jobs WHERE job_id = ? AND owner = coalesce(?, owner)", (job_id, owner)
    ).fetchone()
    return row


def rows_in(connection: sqlite3.Connection, *states: JobState) -> Iterator[sqlite3.Row]:
    """Yields the rows of the jobs in any of these states, oldest first."""
    yield from connection.execute(
        "SELECT * FROM jobs WHERE state IN (SELECT value FROM json_each(?)) ORDER BY ordinal",
        (to_json(states).decode(),),
    ).fetchall()


def insert_job(connection: sqlite3.Connection, job: Job, *, keep_inputs_until: float) -> Job:
    """Stores a new queued job with its first event and what it reads; returns it."""
    queued = msgspec.structs.replace(job, last_sequence=1)
    connection.execute(
        """
        INSERT INTO jobs (job_id, owner, request_id, spec, labels, device, state, attempt, max_attempts, create_time,
                          last_sequence, priority)
        VALUES (:job_id, :owner, :request_id, :spec, :labels, :device, :state, :attempt, :max_attempts, :create_time,
                :last_sequence, :priority)
        """,
        {
            "job_id": queued.job_id,
            "owner": queued.owner,
            "request_id": queued.request_id,
            "spec": _to_text(queued.spec),
            "labels": to_json(queued.labels).decode(),
            "device": queued.device,
            "state": queued.state.value,
            "attempt": queued.attempt,
            "max_attempts": queued.max_attempts,
            "create_time": queued.create_time,
            "last_sequence": queued.last_sequence,
            "priority": queued.spec.limits.priority,
        },
    )
    insert_event(connection, queued, StateEvent(state=queued.state, attempt=queued.attempt), queued.create_time)
    references = (ref.artifact_id for ref in queued.spec.artifact_refs())
    link_inputs(connection, queued.job_id, queued.owner, references, keep_until=keep_inputs_until)
    return queued


def insert_event(connection: sqlite3.Connection, job: Job, payload: EventPayload, now: float) -> Event:
    """Stores an event under the job's `last_sequence`, which the caller has raised by one."""
    event = Event(job_id=job.job_id, sequence=job.last_sequence, time=now, payload=payload)
    connection.execute(
        "INSERT INTO events (job_id, sequence, time, payload) VALUES (?, ?, ?, ?)",
        (event.job_id, event.sequence, event.time, _to_text(event.payload)),
    )
    return event


def start_run(connection: sqlite3.Connection, job: Job, device: str, lease_owner: str, now: float) -> Job:
    """QUEUED -> RUNNING as a new attempt of `lease_owner` on `device`."""
    running = msgspec.structs.replace(
        job,
        state=JobState.RUNNING,
        attempt=job.attempt + 1,
        start_time=now if job.start_time is None else job.start_time,
        last_sequence=job.last_sequence + 1,
    )
    _update(connection, job, running, lease=(lease_owner, device))
    connection.execute("UPDATE jobs SET progress_events = 0 WHERE job_id = ?", (job.job_id,))
    insert_event(connection, running, StateEvent(state=running.state, attempt=running.attempt), now)
    return running


def _progress_after(job: Job, state: JobState) -> Progress | None:
    """A run that begins anew has none; one that succeeded went all the way; any other stands where it ended."""
    if state is JobState.QUEUED or job.progress is None:
        return None
    if state is JobState.SUCCEEDED:
        return msgspec.structs.replace(job.progress, fraction=1.0, remaining_seconds=None)
    return job.progress


def apply_change(connection: sqlite3.Connection, job: Job, change: Change, now: float, retention_seconds: float) -> Job:
    """Moves the job to another state, with its event and its references to results; returns it as it is then.

    Raises:
        ValueError: the state machine has no such transition.
    """
    if change.state not in TRANSITIONS[job.state]:
        raise ValueError(f"a job cannot go from {job.state} to {change.state}")
    ended = change.state.is_terminal
    after = msgspec.structs.replace(
        job,
        state=change.state,
        max_attempts=job.max_attempts + change.extra_attempts,
        # A clock that was set back must not make a job end before it began.
        end_time=max(now, job.start_time or job.create_time) if ended else None,
        expire_time=now + retention_seconds if ended else None,
        progress=_progress_after(job, change.state),
        # The failure of a run that is tried again belongs to that run: it is in the event.
        failure=change.failure if ended else None,
        result=change.result,
        last_sequence=job.last_sequence + 1,
    )
    _update(connection, job, after, lease=None)
    insert_event(connection, after, StateEvent(state=after.state, attempt=after.attempt, failure=change.failure), now)
    if change.result is not None:
        artifact_ids = (change.result.model_artifact_id, change.result.report_artifact_id)
        link_results(connection, after.job_id, artifact_ids)
    return after


def add_run_event(connection: sqlite3.Connection, job: Job, payload: ProgressEvent | LogEvent, now: float) -> Event:
    """Stores what a run reports, counts it by its kind, and keeps progress on the job too."""
    after = msgspec.structs.replace(job, last_sequence=job.last_sequence + 1)
    is_log = isinstance(payload, LogEvent)
    connection.execute(
        """
        UPDATE jobs SET last_sequence = ?, log_events = log_events + ?, progress_events = progress_events + ?
        WHERE job_id = ?
        """,
        (after.last_sequence, int(is_log), int(not is_log), job.job_id),
    )
    if isinstance(payload, ProgressEvent):
        set_progress(connection, job.job_id, payload.progress)
    return insert_event(connection, after, payload, now)


def set_progress(connection: sqlite3.Connection, job_id: str, progress: Progress) -> None:
    """Keeps the latest progress on the job."""
    connection.execute("UPDATE jobs SET progress = ? WHERE job_id = ?", (_to_text(progress), job_id))


def _update(connection: sqlite3.Connection, before: Job, after: Job, lease: tuple[str, str] | None) -> None:
    """Writes what can change, if the row is still as it was read. `lease`: a new (owner, device); None keeps it."""
    lease_owner, leased_device = lease or (None, None)
    updated = connection.execute(
        """
        UPDATE jobs SET
            state = :state, attempt = :attempt, max_attempts = :max_attempts, start_time = :start_time,
            end_time = :end_time, expire_time = :expire_time, progress = :progress, failure = :failure,
            result = :result, last_sequence = :last_sequence,
            lease_owner = CASE WHEN :runs THEN coalesce(:lease_owner, lease_owner) END,
            leased_device = CASE WHEN :runs THEN coalesce(:leased_device, leased_device) END
        WHERE job_id = :job_id AND state = :state_before AND attempt = :attempt_before
            AND last_sequence = :last_sequence_before
        """,
        {
            "job_id": after.job_id,
            "state": after.state.value,
            "attempt": after.attempt,
            "max_attempts": after.max_attempts,
            "start_time": after.start_time,
            "end_time": after.end_time,
            "expire_time": after.expire_time,
            "progress": _text_or_none(after.progress),
            "failure": _text_or_none(after.failure),
            "result": _text_or_none(after.result),
            "last_sequence": after.last_sequence,
            "runs": after.state in {JobState.RUNNING, JobState.CANCELLING},
            "lease_owner": lease_owner,
            "leased_device": leased_device,
            "state_before": before.state.value,
            "attempt_before": before.attempt,
            "last_sequence_before": before.last_sequence,
        },
    )
    if updated.rowcount != 1:
        raise RuntimeError(f"job {before.job_id} changed inside a transaction that had read it")


def _optional(text: str | None, kind: type[V]) -> V | None:
    return None if text is None else from_json(text, kind)


def _text_or_none(value: Value | None) -> str | None:
    return None if value is None else _to_text(value)


def _to_text(value: Value) -> str:
    """The value as JSON that can be read again: a row that cannot be read would spoil every list that it is in.

    Raises:
        ValueError: the value has a number that JSON cannot carry, e.g. NaN.
    """
    data = to_json(value)
    try:
        from_json(data, type(value))
    except msgspec.ValidationError as error:
        raise ValueError(f"{type(value).__name__} cannot be stored as JSON: {error}") from error
    return data.decode()
