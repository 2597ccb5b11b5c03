"""The rows of artifacts and of what the gate found in them; every function works inside the caller's transaction."""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from pruning_server.adapters.paging import Position, clamp_page_size, decode_token, encode_token
from pruning_server.errors import NotFoundError, Reason
from pruning_server.jobs.ports import Artifact
from pruning_server.spec.artifacts import ArtifactKind, Summary
from pruning_server.spec.base import to_json


class Stage(enum.StrEnum):
    """Where a file is on its way in."""

    PENDING = "PENDING"
    # All bytes are durable and proven, but perhaps not yet renamed to their place.
    VERIFIED = "VERIFIED"
    ACTIVE = "ACTIVE"


@dataclass(frozen=True)
class Record:
    """An artifact and its stage."""

    artifact: Artifact
    stage: Stage


def find(connection: sqlite3.Connection, artifact_id: str, owner: str | None = None) -> Record | None:
    """Returns the artifact with this id, or None; also None where it is not this owner's; owner None sees all."""
    return _record(
        connection.execute(
            "SELECT * FROM artifacts WHERE artifact_id = ? AND owner = coalesce(?, owner)", (artifact_id, owner)
        ).fetchone()
    )


def owned_bytes(connection: sqlite3.Connection, owner: str) -> int:
    """Returns how much an owner has stored, with what is announced and still to come."""
    found = connection.execute(
        "SELECT coalesce(sum(size_bytes), 0) AS bytes FROM artifacts WHERE owner = ?", (owner,)
    ).fetchone()
    return int(found["bytes"])


def load(connection: sqlite3.Connection, artifact_id: str, owner: str | None) -> Record:
    """Returns the artifact with this id, or raises NotFoundError; owner None sees all."""
    # Another caller's artifact is answered like one that does not exist, so that ids cannot be probed; with the same work.
    record = find(connection, artifact_id, owner)
    if record is None:
        raise missing(artifact_id)
    return record


def missing(artifact_id: str) -> NotFoundError:
    """The error for an artifact that is not there."""
    return NotFoundError(
        Reason.ARTIFACT_NOT_FOUND,
        f"there is no artifact {artifact_id!r}; it may have expired or been deleted: upload the file again",
        metadata={"artifact_id": artifact_id},
    )


def find_same(
    connection: sqlite3.Connection, owner: str, kind: ArtifactKind, sha256: str, size_bytes: int
) -> Record | None:
    """Returns this owner's artifact of this kind and content, or None."""
    return _record(
        connection.execute(
            "SELECT * FROM artifacts WHERE owner = ? AND kind = ? AND sha256 = ? AND size_bytes = ?",
            (owner, kind.value, sha256, size_bytes),
        ).fetchone()
    )


def stored_size(connection: sqlite3.Connection, owner: str, sha256: str) -> int | None:
    """Returns the size of this content if the owner has it ACTIVE under any kind, else None."""
    row = connection.execute(
        "SELECT size_bytes FROM artifacts WHERE owner = ? AND sha256 = ? AND stage = 'ACTIVE' LIMIT 1",
        (owner, sha256),
    ).fetchone()
    return None if row is None else int(row["size_bytes"])


def insert(connection: sqlite3.Connection, artifact: Artifact, *, announced: bool) -> None:
    """Stores a new artifact; `announced`: by a caller, rather than made by a job."""
    connection.execute(
        """
        INSERT INTO artifacts (artifact_id, owner, kind, sha256, size_bytes, committed_size_bytes, stage, announced,
                               display_name, create_time, expire_time)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        """,
        (
            artifact.artifact_id,
            artifact.owner,
            artifact.kind.value,
            artifact.sha256,
            artifact.size_bytes,
            artifact.committed_size_bytes,
            (Stage.ACTIVE if artifact.active else Stage.PENDING).value,
            announced,
            artifact.display_name,
            artifact.create_time,
            artifact.expire_time,
        ),
    )


def announce_again(connection: sqlite3.Connection, artifact_id: str, display_name: str, keep_until: float) -> None:
    """Notes that a caller announced the artifact (again), under this name, and keeps it until then at least."""
    connection.execute(
        """
        UPDATE artifacts SET announced = 1, display_name = ?, expire_time = max(expire_time, ?) WHERE artifact_id = ?
        """,
        (display_name, keep_until, artifact_id),
    )


def activate(connection: sqlite3.Connection, artifact_id: str, keep_until: float) -> None:
    """Marks the bytes as complete and in place, and keeps them until then at least."""
    connection.execute(
        """
        UPDATE artifacts
        SET stage = 'ACTIVE', committed_size_bytes = size_bytes, expire_time = max(expire_time, ?)
        WHERE artifact_id = ?
        """,
        (keep_until, artifact_id),
    )


def verify(connection: sqlite3.Connection, artifact_id: str) -> None:
    """PENDING -> VERIFIED."""
    connection.execute(
        "UPDATE artifacts SET stage = 'VERIFIED', committed_size_bytes = size_bytes"
        " WHERE artifact_id = ? AND stage = 'PENDING'",
        (artifact_id,),
    )


def commit_size(connection: sqlite3.Connection, artifact_id: str, size_bytes: int, keep_until: float) -> None:
    """Notes how many bytes of an upload are durable, and when it may be collected if nothing more comes."""
    connection.execute(
        "UPDATE artifacts SET committed_size_bytes = ?, expire_time = ? WHERE artifact_id = ? AND stage = 'PENDING'",
        (size_bytes, keep_until, artifact_id),
    )


def restart(connection: sqlite3.Connection, artifact_id: str) -> None:
    """Back to PENDING with no bytes, because they are not there."""
    connection.execute(
        "UPDATE artifacts SET stage = 'PENDING', committed_size_bytes = 0 WHERE artifact_id = ?", (artifact_id,)
    )


def delete(connection: sqlite3.Connection, artifact: Artifact) -> bool:
    """Deletes the artifact; returns whether no other one has a claim to its content, so that the file can go."""
    connection.execute("DELETE FROM artifacts WHERE artifact_id = ?", (artifact.artifact_id,))
    connection.execute(
        """
        DELETE FROM summaries WHERE owner = :owner AND sha256 = :sha256
        AND NOT EXISTS (
            SELECT 1 FROM artifacts
            WHERE owner = summaries.owner AND sha256 = summaries.sha256 AND kind = summaries.kind
        )
        """,
        {"owner": artifact.owner, "sha256": artifact.sha256},
    )
    return not has_claim(connection, artifact.sha256)


def has_claim(connection: sqlite3.Connection, sha256: str) -> bool:
    """Whether any artifact needs the finished file with this hash."""
    found = connection.execute(
        "SELECT 1 FROM artifacts WHERE sha256 = ? AND stage IN ('VERIFIED', 'ACTIVE') LIMIT 1", (sha256,)
    )
    return found.fetchone() is not None


def ids_in(connection: sqlite3.Connection, stage: Stage) -> Sequence[str]:
    """Returns the ids of the artifacts in this stage."""
    found = connection.execute("SELECT artifact_id FROM artifacts WHERE stage = ?", (stage.value,))
    return tuple(row["artifact_id"] for row in found)


def expired_ids(connection: sqlite3.Connection, now: float) -> Sequence[str]:
    """Returns the ids of the artifacts that are past their time and that no stored job reads or wrote."""
    found = connection.execute(
        """
        SELECT artifact_id FROM artifacts WHERE expire_time <= ?
        AND NOT EXISTS (SELECT 1 FROM job_artifacts WHERE job_artifacts.artifact_id = artifacts.artifact_id)
        """,
        (now,),
    )
    return tuple(row["artifact_id"] for row in found)


def list_page(
    connection: sqlite3.Connection, owner: str, kind: ArtifactKind | None, page_size: int, page_token: str
) -> tuple[Sequence[Artifact], str]:
    """Returns a page, newest first, and the token of the next one (empty: none)."""
    start, size = decode_token(page_token), clamp_page_size(page_size)
    kinds = to_json(sorted(ArtifactKind) if kind is None else [kind]).decode()
    found = connection.execute(
        """
        SELECT * FROM artifacts
        WHERE owner = ? AND (create_time, artifact_id) < (?, ?) AND kind IN (SELECT value FROM json_each(?))
        ORDER BY create_time DESC, artifact_id DESC LIMIT ?
        """,
        (owner, start.create_time, start.row_id, kinds, size + 1),
    ).fetchall()
    page = tuple(_read(row).artifact for row in found[:size])
    if len(found) <= size:
        return page, ""
    return page, encode_token(Position(create_time=page[-1].create_time, row_id=page[-1].artifact_id))


def find_summary(connection: sqlite3.Connection, artifact: Artifact) -> Summary | None:
    """Returns what the gate found in this content as this kind, or None; also None for what an older server stored.

    What it found for another owner does not count: an answer that came sooner would tell that somebody has this file.
    """
    row = connection.execute(
        "SELECT summary FROM summaries WHERE owner = ? AND sha256 = ? AND kind = ?",
        (artifact.owner, artifact.sha256, artifact.kind.value),
    ).fetchone()
    if row is None:
        return None
    try:
        # mypy takes a union for an expression, not for a type; msgspec takes it as it is.
        summary: Summary = msgspec.json.decode(row["summary"], type=Summary)
    except msgspec.ValidationError:
        return None
    return summary


def store_summary(connection: sqlite3.Connection, artifact: Artifact, summary: Summary) -> None:
    """Remembers what the gate found, in place of an earlier one."""
    connection.execute(
        "INSERT OR REPLACE INTO summaries (owner, sha256, kind, summary) VALUES (?, ?, ?, ?)",
        (artifact.owner, artifact.sha256, artifact.kind.value, to_json(summary).decode()),
    )


def _record(row: sqlite3.Row | None) -> Record | None:
    return None if row is None else _read(row)


def _read(row: sqlite3.Row) -> Record:
    stage = Stage(row["stage"])
    artifact = Artifact(
        artifact_id=row["artifact_id"],
        owner=row["owner"],
        kind=ArtifactKind(row["kind"]),
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        committed_size_bytes=row["committed_size_bytes"],
        active=stage is Stage.ACTIVE,
        display_name=row["display_name"],
        create_time=row["create_time"],
        expire_time=row["expire_time"],
    )
    return Record(artifact=artifact, stage=stage)
