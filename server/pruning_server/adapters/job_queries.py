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


# So many later submissions of one owner may overtake a job, per step of their priority above its own. Ageing by what was
# overtaken rather than by time: it does not depend on the clock, and no job waits for ever.
PLACES_PER_PRIORITY = 100


_LIST_OWN = """
    SELECT * FROM jobs
    WHERE owner = ? AND (create_time, job_id) < (?, ?) AND state IN (SELECT value FROM json_each(?))
    ORDER BY create_time DESC, job_id DESC
"""
# In words of its own, as an index serves only a comparison with a value.
_LIST_ALL = _LIST_OWN.replace("owner = ?", "? IS NULL")


def load_job(connection: sqlite3.Connection, job_id: str, owner: str | None) -> Job:
    """Returns the job, or raises NotFoundError; owner None sees all."""
    # Another caller's job is answered like one that does not exist, so that ids cannot be probed; with the same work.
    row = find_row(connection, job_id, owner)
    if row is None:
        raise NotFoundError(Reason.JOB_NOT_FOUND, f"there is no job {job_id!r}; it may have been deleted")
    return read_job(row)


def find_request(connection: sqlite3.Connection, owner: str, request_id: str) -> Job | None:
    """Returns the job that this request_id made, or None."""
    row = connection.execute("SELECT * FROM jobs WHERE owner = ? AND request_id = ?", (owner, request_id)).fetchone()
    return None if row is None else read_job(row)


def list_jobs(
    connection: sqlite3.Connection,
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
    start, size = decode_token(page_token), clamp_page_size(page_size)
    page: list[Job] = []
    for row in connection.execute(
        _LIST_ALL if owner is None else _LIST_OWN,
        (owner, start.create_time, start.row_id, to_json(sorted(states or JobState)).decode()),
    ):
        job = read_job(row)
        if labels.items() <= job.labels.items():
            page.append(job)
        if len(page) > size:
            last = page[size - 1]
            return tuple(page[:size]), encode_token(Position(create_time=last.create_time, row_id=last.job_id))
    return tuple(page), ""


def next_row(
    connection: sqlite3.Connection, job_devices: Collection[str], max_running_per_owner: int | None
) -> sqlite3.Row | None:
    """Returns the row of the job whose turn it is among those that wait for one of these devices.

    Owners take turns: the one with the fewest jobs running comes first, then the one that was served longest ago. Within
    an owner the order is that of submission, but each step of priority is worth `PLACES_PER_PRIORITY` places.
    """
    row: sqlite3.Row | None = connection.execute(
        """
        WITH waiting AS (
            SELECT ordinal, owner, ordinal - :places * priority AS place FROM jobs
            WHERE state = 'QUEUED' AND device IN (SELECT value FROM json_each(:devices))
        ), owners AS (
            SELECT waiting.owner AS owner, coalesce(max(turn), 0) AS turn, (
                SELECT count(*) FROM jobs AS others
                WHERE others.owner = waiting.owner AND others.state IN ('RUNNING', 'CANCELLING')
            ) AS running
            FROM waiting LEFT JOIN turns ON turns.owner = waiting.owner GROUP BY waiting.owner
        )
        SELECT * FROM jobs WHERE ordinal = (
            SELECT ordinal FROM waiting JOIN owners ON owners.owner = waiting.owner
            WHERE :most IS NULL OR running < :most
            ORDER BY running, turn, place, ordinal LIMIT 1
        )
        """,
        {
            "places": PLACES_PER_PRIORITY,
            "devices": to_json(sorted(job_devices)).decode(),
            "most": max_running_per_owner,
        },
    ).fetchone()
    return row


def note_turn(connection: sqlite3.Connection, owner: str) -> None:
    """Puts the owner at the end of the line; an owner without jobs leaves it."""
    connection.execute(
        "INSERT OR REPLACE INTO turns (owner, turn) VALUES (?, (SELECT coalesce(max(turn), 0) + 1 FROM turns))",
        (owner,),
    )
    connection.execute("DELETE FROM turns WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.owner = turns.owner)")


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


def check_capacity(
    connection: sqlite3.Connection, owner: str, queue_capacity: int, max_queued_per_owner: int | None
) -> None:
    """Raises CapacityError if `queue_capacity` jobs are queued already, or so many of this owner."""
    if max_queued_per_owner is not None:
        own = connection.execute(
            "SELECT count(*) AS jobs FROM jobs WHERE owner = ? AND state = 'QUEUED'", (owner,)
        ).fetchone()["jobs"]
        if own >= max_queued_per_owner:
            raise CapacityError(
                Reason.QUOTA_EXCEEDED,
                f"{own} of your jobs wait, and this server lets {max_queued_per_owner} of one caller wait; try again later",
                retry_after_seconds=QUEUE_RETRY_SECONDS,
                quota="queued_jobs",
            )
    queued = connection.execute("SELECT count(*) AS jobs FROM jobs WHERE state = 'QUEUED'").fetchone()["jobs"]
    if queued >= queue_capacity:
        raise CapacityError(
            Reason.QUEUE_FULL,
            f"the queue is full ({queued} of {queue_capacity} jobs wait); try again later",
            retry_after_seconds=QUEUE_RETRY_SECONDS,
        )
