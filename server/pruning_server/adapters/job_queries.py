"""What is asked of the tables of jobs and events; every function works inside the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence

from pruning_server.adapters.job_rows import find_row, read_event, read_job
from pruning_server.adapters.paging import Position, clamp_page_size, decode_token, encode_token
from pruning_server.errors import CapacityError, NotFoundError, Reason
from pruning_server.jobs.events import Event
from pruning_server.jobs.model import Job, JobState
from pruning_server.spec.base import to_json

QUEUE_RETRY_SECONDS = 10.0


def load_job(connection: sqlite3.Connection, job_id: str, owner: str | None) -> Job:
    """Returns the job, or raises NotFoundError; owner None sees all."""
    row = find_row(connection, job_id)
    # Another caller's job is answered like one that does not exist, so that ids cannot be probed.
    if row is None or owner not in {None, row["owner"]}:
        raise NotFoundError(Reason.JOB_NOT_FOUND, f"there is no job {job_id!r}; it may have been deleted")
    return read_job(row)


def find_request(connection: sqlite3.Connection, owner: str, request_id: str) -> Job | None:
    """Returns the job that this request_id made, or None."""
    row = connection.execute("SELECT * FROM jobs WHERE owner = ? AND request_id = ?", (owner, request_id)).fetchone()
    return None if row is None else read_job(row)


def list_jobs(
    connection: sqlite3.Connection,
    owner: str,
    states: frozenset[JobState],
    labels: Mapping[str, str],
    page_size: int,
    page_token: str,
) -> tuple[Sequence[Job], str]:
    """Returns a page, newest first, and the token of the next one (empty: none); no states means all.

    Raises:
        InvalidRequestError: the token is not one of ours.
    """
    start, size = decode_token(page_token), clamp_page_size(page_size)
    page: list[Job] = []
    for row in connection.execute(
        """
        SELECT * FROM jobs
        WHERE owner = ? AND (create_time, job_id) < (?, ?) AND state IN (SELECT value FROM json_each(?))
        ORDER BY create_time DESC, job_id DESC
        """,
        (owner, start.create_time, start.row_id, to_json(sorted(states or JobState)).decode()),
    ):
        job = read_job(row)
        if labels.items() <= job.labels.items():
            page.append(job)
        if len(page) > size:
            last = page[size - 1]
            return tuple(page[:size]), encode_token(Position(create_time=last.create_time, row_id=last.job_id))
    return tuple(page), ""


def oldest_queued_row(connection: sqlite3.Connection, job_devices: Collection[str]) -> sqlite3.Row | None:
    """Returns the row of the job that was submitted first among those that wait for one of these devices."""
    row: sqlite3.Row | None = connection.execute(
        """
        SELECT * FROM jobs WHERE state = 'QUEUED' AND device IN (SELECT value FROM json_each(?))
        ORDER BY ordinal LIMIT 1
        """,
        (to_json(sorted(job_devices)).decode(),),
    ).fetchone()
    return row


def events_after(connection: sqlite3.Connection, job_id: str, sequence: int, limit: int) -> Sequence[Event]:
    """Returns at most `limit` events with a number above `sequence`, in order."""
    found = connection.execute(
        "SELECT * FROM events WHERE job_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
        # A negative limit would mean "all" to SQLite.
        (job_id, sequence, max(limit, 0)),
    )
    return tuple(read_event(row) for row in found)


def newest_event(connection: sqlite3.Connection, job: Job) -> Event:
    """Returns the last event of a job; every job has one."""
    (event,) = events_after(connection, job.job_id, job.last_sequence - 1, 1)
    return event


def counts_by_state(connection: sqlite3.Connection) -> Mapping[JobState, int]:
    """Returns how many jobs are in each state; every state is a key."""
    found = connection.execute("SELECT state, count(*) AS jobs FROM jobs GROUP BY state")
    return dict.fromkeys(JobState, 0) | {JobState(row["state"]): row["jobs"] for row in found}


def oldest_queued_time(connection: sqlite3.Connection) -> float | None:
    """Returns when the job that waits longest was created; None: none waits."""
    row = connection.execute("SELECT min(create_time) AS oldest FROM jobs WHERE state = 'QUEUED'").fetchone()
    oldest: float | None = row["oldest"]
    return oldest


def check_capacity(connection: sqlite3.Connection, queue_capacity: int) -> None:
    """Raises CapacityError if `queue_capacity` jobs are queued already."""
    queued = connection.execute("SELECT count(*) AS jobs FROM jobs WHERE state = 'QUEUED'").fetchone()["jobs"]
    if queued >= queue_capacity:
        raise CapacityError(
            Reason.QUEUE_FULL,
            f"the queue is full ({queued} of {queue_capacity} jobs wait); try again later",
            retry_after_seconds=QUEUE_RETRY_SECONDS,
        )
