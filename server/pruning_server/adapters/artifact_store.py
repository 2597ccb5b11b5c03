"""Content-addressed files on the local disk, with their rows in the database."""

from __future__ import annotations

import logging
import re
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pruning_server.adapters import artifact_rows as rows
from pruning_server.adapters.artifact_references import is_needed, unfinished_job_using
from pruning_server.adapters.artifact_rows import Record, Stage
from pruning_server.adapters.artifact_shelf import ArtifactShelf
from pruning_server.adapters.artifact_upload import CompleteUpload, PartUpload
from pruning_server.adapters.blob_files import BlobFiles, storage_full
from pruning_server.adapters.database import Database
from pruning_server.adapters.exclusive import Exclusive
from pruning_server.adapters.failpoints import Failpoints, no_failpoints
from pruning_server.errors import (
    CapacityError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    Reason,
    ServiceError,
)
from pruning_server.jobs.ports import Artifact, Clock, UploadWriter
from pruning_server.spec.artifacts import ArtifactKind, Summary

SYNC_EVERY_BYTES = 64 * 2**20
# Left free for the database and the runs.
MIN_FREE_BYTES = 64 * 2**20
# How old a file that no row names must be before it is removed: longer than copying any file in takes.
ORPHAN_GRACE_SECONDS = 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class LocalArtifactStore:
    """Fills `jobs.ports.ArtifactStore`; safe to use from any thread of one server process.

    The same content is stored once on disk, but a caller learns only of files that the same caller sent.

    Args:
        database: where the rows lie, together with the jobs that need them.
        root: folder of the files; created if missing. Must be on one local file system.
        clock: source of every time that is stored.
        retention_seconds: how long an artifact is kept after its last use.
        upload_retention_seconds: how long an unfinished upload is kept after its last byte.
        max_artifact_bytes: the largest file that may be announced.
        min_free_bytes: an upload that would leave less of the disk is refused.
        sync_every_bytes: so many bytes of an upload are made durable at a time.
        orphan_grace_seconds: how old a file that no row names must be before it is removed.
        max_bytes_per_owner: an upload that would leave its owner with more is refused; None: none is.
        failpoints: where tests make it fail.
    """

    def __init__(  # noqa: PLR0913 - the store's whole policy, each part by its name
        self,
        database: Database,
        root: Path,
        clock: Clock,
        retention_seconds: float,
        upload_retention_seconds: float,
        max_artifact_bytes: int,
        *,
        min_free_bytes: int = MIN_FREE_BYTES,
        sync_every_bytes: int = SYNC_EVERY_BYTES,
        orphan_grace_seconds: float = ORPHAN_GRACE_SECONDS,
        max_bytes_per_owner: int | None = None,
        failpoints: Failpoints = no_failpoints,
    ) -> None:
        self._database = database
        self._files = BlobFiles(root, failpoints)
        self._clock = clock
        self._retention_seconds = retention_seconds
        self._upload_retention_seconds = upload_retention_seconds
        self._max_artifact_bytes = max_artifact_bytes
        self._min_free_bytes = min_free_bytes
        self._sync_every_bytes = sync_every_bytes
        self._orphan_grace_seconds = orphan_grace_seconds
        self._max_bytes_per_owner = max_bytes_per_owner
        self._shelf = ArtifactShelf(database, self._files)
        # Artifacts that are being uploaded or deleted.
        self._busy = Exclusive()
        self._shelf.settle_all(self._keep_until())

    # --- uploads ------------------------------------------------------------------------------------------------------

    def create(self, owner: str, kind: ArtifactKind, sha256: str, size_bytes: int, display_name: str) -> Artifact:
        """Announces a file; ACTIVE at once if this owner's bytes are stored already, else the upload to continue.

        Raises:
            InvalidRequestError: hash or size cannot be right, or the file is too large.
            CapacityError: the disk has no room for it, or the owner's share of it is used up.
        """
        self._check_announcement(sha256, size_bytes)
        with self._database.write() as connection:
            # A row that goes takes its file with it only after its own transaction, and only if no row has come since.
            in_place = self._is_in_place(connection, owner, sha256, size_bytes)
            same = rows.find_same(connection, owner, kind, sha256, size_bytes)
            if not in_place:
                self._check_room(size_bytes if same is None else _missing_bytes(same))
            now = self._clock.now()
            keep_until = now + (self._retention_seconds if in_place else self._upload_retention_seconds)
            if same is None:
                self._check_share(connection, owner, size_bytes)
                artifact = Artifact(
                    artifact_id=uuid.uuid4().hex,
                    owner=owner,
                    kind=kind,
                    sha256=sha256,
                    size_bytes=size_bytes,
                    committed_size_bytes=size_bytes if in_place else 0,
                    active=in_place,
                    display_name=display_name,
                    create_time=now,
                    expire_time=keep_until,
                )
                rows.insert(connection, artifact, announced=True)
                return artifact
            artifact_id = same.artifact.artifact_id
            rows.announce_again(connection, artifact_id, display_name, keep_until)
            if in_place:
                rows.activate(connection, artifact_id, keep_until)
            elif same.stage is Stage.ACTIVE:
                _log.error("the file of artifact %s is gone; it must be uploaded again", artifact_id)
                rows.restart(connection, artifact_id)
            return rows.load(connection, artifact_id, owner).artifact

    @contextmanager
    def open_upload(self, owner: str, artifact_id: str) -> Iterator[UploadWriter]:
        """Continues an upload; leaving the context suspends it unless it was finished.

        Raises:
            NotFoundError: there is no such artifact.
            PreconditionError: somebody else is uploading it.
        """
        self.get(owner, artifact_id)
        with self._alone(artifact_id):
            record = self._shelf.settle(artifact_id, self._keep_until())
            if record.stage is Stage.ACTIVE:
                yield CompleteUpload(record.artifact)
                return
            upload = PartUpload(self, self._files, record.artifact, sync_every_bytes=self._sync_every_bytes)
            try:
                with _suspended(upload):
                    yield upload
            finally:
                upload.close()

    def note_committed(self, artifact_id: str, size_bytes: int) -> Artifact:
        """Notes that so many bytes of an upload are durable."""
        with self._database.write() as connection:
            keep_until = self._clock.now() + self._upload_retention_seconds
            rows.commit_size(connection, artifact_id, size_bytes, keep_until)
            return rows.load(connection, artifact_id, None).artifact

    def publish_upload(self, artifact: Artifact) -> Artifact:
        """Moves a verified upload to its place and returns the ACTIVE artifact."""
        with self._database.write() as connection:
            rows.verify(connection, artifact.artifact_id)
        return self._shelf.settle(artifact.artifact_id, self._keep_until()).artifact

    def put_file(self, owner: str, kind: ArtifactKind, source: Path, display_name: str) -> Artifact:
        """Stores a finished file of ours, atomically, and returns it ACTIVE; `source` stays as it is.

        Raises:
            InvalidArtifactError: it is empty, a link, or not a plain file.
            CapacityError: the disk is full.
        """
        staged = self._files.stage(source)
        try:
            now = self._clock.now()
            keep_until = now + self._retention_seconds
            return self._shelf.adopt(owner, kind, staged, display_name, now=now, keep_until=keep_until)
        finally:
            staged.path.unlink(missing_ok=True)

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, owner: str, artifact_id: str) -> Artifact:
        """Returns the artifact, or raises NotFoundError."""
        with self._database.read() as connection:
            return rows.load(connection, artifact_id, owner).artifact

    def list(
        self, owner: str, kind: ArtifactKind | None, page_size: int, page_token: str
    ) -> tuple[Sequence[Artifact], str]:
        """Returns a page, newest first, and the token of the next one (empty: none).

        Raises:
            InvalidRequestError: the token is not one of ours.
        """
        with self._database.read() as connection:
            return rows.list_page(connection, owner, kind, page_size, page_token)

    def open_read(self, owner: str, artifact_id: str) -> BinaryIO:
        """Opens an ACTIVE artifact for reading; the reader keeps its bytes even if the artifact is deleted meanwhile.

        Raises:
            NotFoundError: there is no such artifact.
            PreconditionError: its upload is not finished.
        """
        try:
            return self._active_path(artifact_id, owner).open("rb")
        except FileNotFoundError as error:
            raise rows.missing(artifact_id) from error

    def path(self, artifact_id: str) -> Path:
        """Where the bytes of an ACTIVE artifact lie, for reading by the gate; errors as `open_read`."""
        return self._active_path(artifact_id, None)

    def summary(self, artifact_id: str) -> Summary | None:
        """What the gate found in it, if it was checked; NotFoundError if there is no such artifact."""
        with self._database.read() as connection:
            return rows.find_summary(connection, rows.load(connection, artifact_id, None).artifact)

    def put_summary(self, artifact_id: str, summary: Summary) -> None:
        """Remembers what the gate found, for every artifact with this content and kind."""
        with self._database.write() as connection:
            record = rows.load(connection, artifact_id, None)
            _check_active(record)
            rows.store_summary(connection, record.artifact, summary)

    # --- deleting -----------------------------------------------------------------------------------------------------

    def delete(self, owner: str, artifact_id: str) -> None:
        """Deletes it.

        Raises:
            NotFoundError: there is no such artifact.
            PreconditionError: an unfinished job uses it, or it is being uploaded.
        """
        self.get(owner, artifact_id)
        with self._alone(artifact_id):
            self._shelf.remove(artifact_id, _unused)

    def collect_garbage(self) -> int:
        """Deletes artifacts past their time that no stored job needs, and files that no row names.

        Returns:
            the bytes freed.
        """
        now = self._clock.now()
        with self._database.read() as connection:
            expired = rows.expired_ids(connection, now)
        freed = sum(self._collect(artifact_id, now) for artifact_id in expired)
        for path in self._files.upload_files():
            if self._is_old(path, now) and not self._busy.is_held(path.stem):
                freed += self._shelf.remove_upload_file(path)
        return freed + sum(self._shelf.remove_orphan(path) for path in self._files.blobs() if self._is_old(path, now))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _check_announcement(self, sha256: str, size_bytes: int) -> None:
        if not _SHA256.fullmatch(sha256):
            raise InvalidRequestError.for_field(
                "sha256", "must be the file's SHA-256 as 64 lower-case hexadecimal digits"
            )
        if size_bytes <= 0:
            raise InvalidRequestError.for_field("size_bytes", "must be above 0: an empty file holds nothing to use")
        if size_bytes > self._max_artifact_bytes:
            raise InvalidRequestError.for_field(
                "size_bytes",
                f"{size_bytes} is above the {self._max_artifact_bytes} bytes that this server takes",
                Reason.ARTIFACT_TOO_LARGE,
            )

    def _check_room(self, needed_bytes: int) -> None:
        if self._files.free_bytes() - self._min_free_bytes < needed_bytes:
            raise storage_full()

    def _check_share(self, connection: sqlite3.Connection, owner: str, size_bytes: int) -> None:
        """Files of the same content and another kind count again: they cost little, but nothing is simpler to say."""
        most = self._max_bytes_per_owner
        if most is None:
            return
        owned = rows.owned_bytes(connection, owner)
        if owned + size_bytes > most:
            raise CapacityError(
                Reason.QUOTA_EXCEEDED,
                f"you have stored {owned} of {most} bytes, and this file has {size_bytes}; delete what you no longer need",
                quota="stored_bytes",
            )

    def _is_in_place(self, connection: sqlite3.Connection, owner: str, sha256: str, size_bytes: int) -> bool:
        stored = rows.stored_size(connection, owner, sha256)
        if stored is not None and stored != size_bytes:
            raise InvalidRequestError.for_field(
                "size_bytes", f"the file with this sha256 has {stored} bytes, the request says {size_bytes}"
            )
        return stored is not None and self._files.has_blob(sha256, size_bytes)

    @contextmanager
    def _alone(self, artifact_id: str) -> Iterator[None]:
        """Keeps everybody else from writing or deleting this artifact; refuses if somebody does already."""
        with self._busy.attempt(artifact_id) as entered:
            if not entered:
                raise PreconditionError(
                    Reason.UPLOAD_IN_PROGRESS,
                    f"artifact {artifact_id} is being uploaded by another call; wait until that ends, then try again",
                )
            yield

    def _keep_until(self) -> float:
        return self._clock.now() + self._retention_seconds

    def _active_path(self, artifact_id: str, owner: str | None) -> Path:
        with self._database.read() as connection:
            record = rows.load(connection, artifact_id, owner)
        _check_active(record)
        return self._files.blob(record.artifact.sha256)

    def _collect(self, artifact_id: str, now: float) -> int:
        """Deletes an artifact that is still past its time and still not needed; returns the bytes freed."""

        def may_go(connection: sqlite3.Connection, record: Record) -> bool:
            return record.artifact.expire_time <= now and not is_needed(connection, artifact_id)

        with self._busy.attempt(artifact_id) as entered:
            try:
                return self._shelf.remove(artifact_id, may_go) if entered else 0
            except NotFoundError:
                return 0

    def _is_old(self, path: Path, now: float) -> bool:
        try:
            return now - path.lstat().st_mtime >= self._orphan_grace_seconds
        except FileNotFoundError:
            return False


@contextmanager
def _suspended(upload: PartUpload) -> Iterator[None]:
    """Leaves the upload at the end of the block, without hiding an error of the block behind one of leaving."""
    try:
        yield
    except BaseException:
        try:
            upload.leave()
        except (OSError, ServiceError, sqlite3.Error):
            _log.warning("what arrived of an upload since its last commit could not be kept", exc_info=True)
        raise
    upload.leave()


def _missing_bytes(record: Record) -> int:
    """How much is still to come. An ACTIVE artifact is only asked about when its file is gone."""
    artifact = record.artifact
    return artifact.size_bytes - (0 if artifact.active else artifact.committed_size_bytes)


def _check_active(record: Record) -> None:
    artifact = record.artifact
    if not artifact.active:
        raise PreconditionError(
            Reason.ARTIFACT_NOT_ACTIVE,
            f"artifact {artifact.artifact_id} is not complete: {artifact.committed_size_bytes} of"
            f" {artifact.size_bytes} bytes arrived; finish the upload first",
            metadata={"committed_size_bytes": str(artifact.committed_size_bytes)},
        )


def _unused(connection: sqlite3.Connection, record: Record) -> bool:
    """True, or PreconditionError: a job that has not ended uses it."""
    artifact_id = record.artifact.artifact_id
    job_id = unfinished_job_using(connection, artifact_id)
    if job_id is not None:
        raise PreconditionError(
            Reason.ARTIFACT_IN_USE,
            f"job {job_id} uses artifact {artifact_id}; wait until it has ended or cancel it, then delete",
            metadata={"job_id": job_id},
        )
    return True
