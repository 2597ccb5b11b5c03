"""One upload in progress: bytes to the part file, a running hash, and what is durable in the row."""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

from pruning_server.adapters.blob_files import BlobFiles, full_disk_explained, hash_prefix, write_all
from pruning_server.errors import ChecksumError, InvalidRequestError, OffsetError, Reason
from pruning_server.jobs.ports import Artifact


class UploadRecords(Protocol):
    """What an upload asks of the store; each call is one durable transaction."""

    def note_committed(self, artifact_id: str, size_bytes: int) -> Artifact:
        """Notes that so many bytes are durable."""
        ...

    def publish_upload(self, artifact: Artifact) -> Artifact:
        """Moves the verified file to its place and returns the ACTIVE artifact."""
        ...


class PartUpload:
    """Fills `jobs.ports.UploadWriter` for a pending artifact; used by one thread at a time.

    Args:
        sync_every_bytes: how much may be lost with the server: so many bytes are made durable at a time.
    """

    def __init__(self, records: UploadRecords, files: BlobFiles, artifact: Artifact, *, sync_every_bytes: int) -> None:
        self._records = records
        self._reach = files.reach
        self._artifact = artifact
        self._sync_every_bytes = sync_every_bytes
        # Set once the file is finished or cannot be trusted: from then on nothing of it is noted as durable.
        self._sealed = False
        self._fd = files.open_part(artifact.artifact_id)
        try:
            # What lies behind the committed size was never promised, and may be a torn write. A shorter file means
            # that the disk lost bytes; then the upload continues where they end.
            self._position = min(artifact.committed_size_bytes, os.fstat(self._fd).st_size)
            os.ftruncate(self._fd, self._position)
            self._digest: hashlib._Hash = hash_prefix(self._fd, self._position)
        except BaseException:
            os.close(self._fd)
            raise
        self._committed = artifact.committed_size_bytes

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Appends `data` at `offset`.

        Raises:
            OffsetError: `offset` is not where the upload stands.
            InvalidRequestError: more bytes than announced.
            CapacityError: the disk is full; what arrived before is kept.
        """
        check_offset(offset, self._position)
        size = memoryview(data).nbytes
        if self._position + size > self._artifact.size_bytes:
            raise InvalidRequestError.for_field(
                "data",
                f"goes beyond the {self._artifact.size_bytes} bytes that were announced; create the artifact with the"
                " size that the file has",
            )
        with full_disk_explained():
            self._reach("upload.write")
            write_all(self._fd, data, offset)
        self._digest.update(data)
        self._position += size
        if self._position - self._committed >= self._sync_every_bytes:
            self._commit()

    def finish(self) -> Artifact:
        """Verifies size and SHA-256, renames atomically, and returns the ACTIVE artifact.

        Raises:
            ChecksumError: the content is not what was announced; the upload starts again from 0.
            CapacityError: the disk is full; what arrived is kept.
        """
        digest = self._digest.hexdigest()
        if self._position != self._artifact.size_bytes or digest != self._artifact.sha256:
            raise self._refuse(digest)
        self._sync()
        self._sealed = True
        return self._records.publish_upload(self._artifact)

    def suspend(self) -> Artifact:
        """Makes what arrived durable and returns the artifact, still pending."""
        return self._commit()

    def leave(self) -> None:
        """Suspends the upload unless it was finished, or the disk failed to keep it."""
        if not self._sealed:
            self.suspend()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def _commit(self) -> Artifact:
        self._sync()
        committed = self._records.note_committed(self._artifact.artifact_id, self._position)
        self._committed = self._position
        return committed

    def _sync(self) -> None:
        try:
            with full_disk_explained():
                self._reach("upload.sync")
                os.fsync(self._fd)
        except BaseException:
            # The system reports a lost write once; a second sync would succeed although the bytes are gone.
            self._sealed = True
            raise

    def _refuse(self, digest: str) -> ChecksumError:
        received, announced = self._position, self._artifact
        os.ftruncate(self._fd, 0)
        self._position, self._digest = 0, hashlib.sha256()
        self._commit()
        what = (
            f"{received} bytes arrived, but {announced.size_bytes} were announced"
            if received != announced.size_bytes
            else f"the SHA-256 of what arrived is {digest}, but {announced.sha256} was announced"
        )
        return ChecksumError(
            Reason.CONTENT_MISMATCH,
            f"{what}; nothing of it is kept: check that the file did not change meanwhile, and send it again from 0",
            metadata={"committed_size_bytes": "0"},
        )


class CompleteUpload:
    """Fills `jobs.ports.UploadWriter` for an artifact that is ACTIVE, e.g. where the answer to `finish` got lost."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Takes nothing but an empty rest.

        Raises:
            OffsetError: `offset` is not the end of the file.
            InvalidRequestError: more bytes than announced.
        """
        check_offset(offset, self._artifact.size_bytes)
        if memoryview(data).nbytes:
            raise InvalidRequestError.for_field("data", "goes beyond the end: the artifact is complete already")

    def finish(self) -> Artifact:
        """Returns the ACTIVE artifact."""
        return self._artifact

    def suspend(self) -> Artifact:
        """Returns the ACTIVE artifact."""
        return self._artifact


def check_offset(offset: int, position: int) -> None:
    """Raises OffsetError, which says where the upload stands, if it is not at `offset`."""
    if offset != position:
        raise OffsetError(
            Reason.WRONG_OFFSET,
            f"the upload stands at byte {position}, the message is for byte {offset}; continue at {position}",
            metadata={"committed_size_bytes": str(position)},
        )
