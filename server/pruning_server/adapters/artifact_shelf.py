"""Where files and the rows that name them change together.

A row is ACTIVE only while its file is in place: a file is renamed into place before its row becomes ACTIVE, and a row
is deleted before its file. Whatever crash comes between leaves at most a file that no row names, which garbage
collection removes, or a VERIFIED row, which `settle` brings to its end.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from pruning_server.adapters import artifact_rows as rows
from pruning_server.adapters.artifact_rows import Record, Stage
from pruning_server.adapters.blob_files import BlobFiles, StagedFile, remove
from pruning_server.adapters.database import Database
from pruning_server.errors import ServiceError
from pruning_server.jobs.ports import Artifact
from pruning_server.spec.artifacts import ArtifactKind

_log = logging.getLogger(__name__)


class ArtifactShelf:
    """Files and rows under one lock, which is taken before the database's; safe to use from any thread."""

    def __init__(self, database: Database, files: BlobFiles) -> None:
        self._database = database
        self._files = files
        self._lock = threading.Lock()

    def settle_all(self, keep_until: float) -> None:
        """Settles every VERIFIED artifact; at start, when nothing else is going on."""
        with self._database.read() as connection:
            unsettled = rows.ids_in(connection, Stage.VERIFIED)
        for artifact_id in unsettled:
            try:
                self.settle(artifact_id, keep_until)
            except (OSError, ServiceError):
                # Opening its upload settles it too; until then one artifact must not keep a server from starting.
                _log.exception("artifact %s could not be settled", artifact_id)

    def settle(self, artifact_id: str, keep_until: float) -> Record:
        """Brings a VERIFIED artifact to ACTIVE, wherever its file is by now; returns the artifact as it is then.

        Raises:
            NotFoundError: there is no such artifact.
        """
        with self._lock:
            with self._database.read() as connection:
                record = rows.load(connection, artifact_id, None)
            if record.stage is not Stage.VERIFIED:
                return record
            artifact, part = record.artifact, self._files.part(artifact_id)
            if part.exists():
                self._files.publish(part, artifact.sha256)
            with self._database.write() as connection:
                if self._files.has_blob(artifact.sha256, artifact.size_bytes):
                    rows.activate(connection, artifact_id, keep_until)
                else:
                    rows.restart(connection, artifact_id)
                return rows.load(connection, artifact_id, None)

    def adopt(
        self, owner: str, kind: ArtifactKind, staged: StagedFile, display_name: str, *, now: float, keep_until: float
    ) -> Artifact:
        """Puts a copied file in its place and returns its artifact, ACTIVE; one with this content is reused."""
        with self._lock:
            self._files.publish(staged.path, staged.sha256)
            with self._database.write() as connection:
                same = rows.find_same(connection, owner, kind, staged.sha256, staged.size_bytes)
                if same is not None:
                    rows.activate(connection, same.artifact.artifact_id, keep_until)
                    return rows.load(connection, same.artifact.artifact_id, owner).artifact
                artifact = Artifact(
                    artifact_id=uuid.uuid4().hex,
                    owner=owner,
                    kind=kind,
                    sha256=staged.sha256,
                    size_bytes=staged.size_bytes,
                    committed_size_bytes=staged.size_bytes,
                    active=True,
                    display_name=display_name,
                    create_time=now,
                    expire_time=keep_until,
                )
                rows.insert(connection, artifact, announced=False)
                return artifact

    def remove(self, artifact_id: str, may_go: Callable[[sqlite3.Connection, Record], bool]) -> int:
        """Deletes row and files if `may_go` says so inside the transaction; returns the bytes freed."""
        with self._lock:
            with self._database.write() as connection:
                record = rows.load(connection, artifact_id, None)
                if not may_go(connection, record):
                    return 0
                was_last = rows.delete(connection, record.artifact)
            freed = self._files.remove_part(artifact_id)
            return freed + (self._files.remove_blob(record.artifact.sha256) if was_last else 0)

    def remove_upload_file(self, path: Path) -> int:
        """Removes a part or a copy that no upload will continue; returns the bytes freed."""
        with self._lock:
            with self._database.read() as connection:
                record = rows.find(connection, path.stem) if path.suffix == ".part" else None
            return 0 if record is not None and record.stage is not Stage.ACTIVE else remove(path)

    def remove_orphan(self, blob: Path) -> int:
        """Removes a finished file that no row names; returns the bytes freed."""
        with self._lock:
            with self._database.read() as connection:
                wanted = rows.has_claim(connection, blob.name)
            return 0 if wanted else remove(blob)
