"""Which jobs use which artifacts: written with the job, read before an artifact is deleted.

Every function works inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable


def link_inputs(
    connection: sqlite3.Connection, job_id: str, owner: str, artifact_ids: Iterable[str], *, keep_until: float
) -> None:
    """Notes what a new job reads, and keeps those artifacts at least until `keep_until` (seconds since the epoch)."""
    for artifact_id in dict.fromkeys(artifact_ids):
        connection.execute(
            "INSERT INTO job_artifacts (job_id, artifact_id, role) VALUES (?, ?, 'input')", (job_id, artifact_id)
        )
        connection.execute(
            "UPDATE artifacts SET expire_time = max(expire_time, ?) WHERE artifact_id = ? AND owner = ?",
            (keep_until, artifact_id, owner),
        )


def link_results(connection: sqlite3.Connection, job_id: str, artifact_ids: Iterable[str]) -> None:
    """Notes what a job wrote."""
    connection.executemany(
        "INSERT INTO job_artifacts (job_id, artifact_id, role) VALUES (?, ?, 'result')",
        [(job_id, artifact_id) for artifact_id in dict.fromkeys(artifact_ids)],
    )


def release_results(connection: sqlite3.Connection, job_id: str, now: float) -> None:
    """Lets the next collection delete what only this job made and nobody else needs; call before deleting the job.

    What is kept for longer than this job was prolonged since: another run has made the same file, and is about to say so.
    """
    connection.execute(
        """
        UPDATE artifacts SET expire_time = min(expire_time, :now)
        WHERE announced = 0
          AND expire_time <= (SELECT expire_time FROM jobs WHERE job_id = :job_id)
          AND artifact_id IN (SELECT artifact_id FROM job_artifacts WHERE job_id = :job_id AND role = 'result')
          AND artifact_id NOT IN (SELECT artifact_id FROM job_artifacts WHERE job_id != :job_id)
        """,
        {"now": now, "job_id": job_id},
    )


def is_needed(connection: sqlite3.Connection, artifact_id: str) -> bool:
    """Whether a stored job, ended or not, reads or wrote it."""
    found = connection.execute("SELECT 1 FROM job_artifacts WHERE artifact_id = ? LIMIT 1", (artifact_id,))
    return found.fetchone() is not None


def unfinished_job_using(connection: sqlite3.Connection, artifact_id: str) -> str | None:
    """Returns the id of a job that reads it and has not ended, or None."""
    found = connection.execute(
        """
        SELECT job_id FROM job_artifacts JOIN jobs USING (job_id)
        WHERE artifact_id = ? AND state IN ('QUEUED', 'RUNNING', 'CANCELLING') LIMIT 1
        """,
        (artifact_id,),
    ).fetchone()
    return None if found is None else str(found["job_id"])
