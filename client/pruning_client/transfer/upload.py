"""Sends a file: hashed first, not at all if the server has it, and on from where the server stands after every cut."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import grpc

from pruning_api.v1 import artifact_service_pb2 as api
from pruning_client.connection import Connection
from pruning_client.errors import (
    BadInputError,
    DataLossError,
    OutOfRangeError,
    PruningClientError,
    UnavailableError,
)
from pruning_client.retries import Outage, may_be_endured
from pruning_client.text import printable
from pruning_client.transfer.stall import STALL_SECONDS, StallGuard
from pruning_client.values import Artifact, ArtifactKind, ArtifactState
from pruning_client.wire.answers import artifact_from_wire, kind_to_wire

MESSAGE_BYTES = 1 << 20
# The server may read the whole file once more at the end, on a slow disk.
_VERIFY_BYTES_PER_SECOND = 20e6

ProgressCallback = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all; from another thread while an upload runs."""


@dataclass(frozen=True)
class FileDigest:
    """What a file was when it was hashed."""

    path: Path
    size_bytes: int
    sha256: str
    modified_ns: int


def digest_file(path: str | Path) -> FileDigest:
    """Reads the file once and returns its size and SHA-256.

    Raises:
        BadInputError: it does not exist, is no regular file, is empty or cannot be read.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadInputError(f"{path} is not a file", reason="FILE_UNREADABLE")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}", reason="FILE_UNREADABLE") from error
    if status.st_size == 0:
        raise BadInputError(f"{path} is empty")
    return FileDigest(path, status.st_size, sha256, status.st_mtime_ns)


def upload(
    connection: Connection, digest: FileDigest, kind: ArtifactKind, progress: ProgressCallback | None = None
) -> Artifact:
    """Returns the ACTIVE artifact of the file.

    Raises:
        BadInputError: the file changed since it was hashed, or cannot be read.
        PruningClientError: the server refused it, or could not be reached for too long.
    """
    response = connection.unary(
        connection.artifacts.CreateArtifact,
        api.CreateArtifactRequest(
            kind=kind_to_wire(kind),
            size_bytes=digest.size_bytes,
            sha256=digest.sha256,
            display_name=printable(digest.path.name, 200),
        ),
    )
    artifact = artifact_from_wire(response.artifact)
    outage = Outage(connection.policy, connection.timing)
    outage.over()
    while artifact.state is not ArtifactState.ACTIVE:
        before = artifact.committed_size_bytes
        artifact = _advance(connection, digest, artifact, progress, outage)
        if artifact.committed_size_bytes > before:
            outage.over()
    if progress is not None:
        progress(digest.size_bytes, digest.size_bytes)
    return artifact


def _advance(
    connection: Connection,
    digest: FileDigest,
    artifact: Artifact,
    progress: ProgressCallback | None,
    outage: Outage,
) -> Artifact:
    """Sends what is missing; after a failure that may pass, waits and returns where the server stands."""
    try:
        written = _write(connection, digest, artifact, progress)
        if written.state is ArtifactState.ACTIVE or written.committed_size_bytes > artifact.committed_size_bytes:
            return written
        outage.endure(UnavailableError("the server ended the upload before the file was complete"))
    except PruningClientError as error:
        if not _may_pass(error):
            _raise_if_changed(digest, error)
            raise
        outage.endure(error)
    while True:
        try:
            # One try each: the outage counts them.
            response = connection.unary_once(
                connection.artifacts.GetArtifact, api.GetArtifactRequest(artifact_id=artifact.artifact_id)
            )
            return artifact_from_wire(response.artifact)
        except PruningClientError as error:
            if not may_be_endured(error):
                raise
            outage.endure(error)


def _may_pass(error: PruningClientError) -> bool:
    """Whether the upload can go on from where the server says it stands."""
    is_stale_stream = error.reason == "UPLOAD_IN_PROGRESS"  # ours, cut off, or another caller's of the same file
    is_bad_message = isinstance(error, DataLossError) and error.reason == "CHUNK_CHECKSUM_MISMATCH"
    return may_be_endured(error) or isinstance(error, OutOfRangeError) or is_stale_stream or is_bad_message


def _raise_if_changed(digest: FileDigest, error: PruningClientError) -> None:
    try:
        status = digest.path.stat()
    except OSError:
        return
    if (status.st_size, status.st_mtime_ns) != (digest.size_bytes, digest.modified_ns):
        raise BadInputError(f"{digest.path} changed while it was uploaded; try again") from error


class _Messages:
    """The requests of one stream. An error in it is kept for the caller: grpc would only log it."""

    def __init__(
        self, file: BinaryIO, digest: FileDigest, artifact: Artifact, progress: ProgressCallback | None
    ) -> None:
        self.error: Exception | None = None
        self.guard: StallGuard | None = None
        self._file = file
        self._digest = digest
        self._artifact = artifact
        self._progress = progress

    def __iter__(self) -> Iterator[api.WriteArtifactRequest]:
        try:
            yield from self._requests()
        except Exception as error:  # noqa: BLE001 - this runs in grpc's thread; the caller raises it in its own
            self.error = error

    def _requests(self) -> Iterator[api.WriteArtifactRequest]:
        offset, size = self._artifact.committed_size_bytes, self._digest.size_bytes
        self._file.seek(offset)
        artifact_id = self._artifact.artifact_id
        while True:
            data = self._file.read(MESSAGE_BYTES)
            end = offset + len(data)
            if end > size or (end < size and not data):
                raise BadInputError(f"{self._digest.path} changed while it was uploaded; try again")
            if self._progress is not None:
                self._progress(offset, size)
            if self.guard is not None:
                self.guard.beat(STALL_SECONDS + (size / _VERIFY_BYTES_PER_SECOND if end == size else 0.0))
            yield api.WriteArtifactRequest(
                artifact_id=artifact_id,
                offset=offset,
                data=data,
                crc32c=google_crc32c.value(data),
                finish_write=end == size,
            )
            if end == size:
                return
            artifact_id, offset = "", end


def _write(
    connection: Connection, digest: FileDigest, artifact: Artifact, progress: ProgressCallback | None
) -> Artifact:
    try:
        file = digest.path.open("rb")
    except OSError as error:
        raise BadInputError(f"cannot read {digest.path}: {error.strerror}", reason="FILE_UNREADABLE") from error
    with file:
        messages = _Messages(file, digest, artifact, progress)
        call = connection.artifacts.WriteArtifact.future(iter(messages), metadata=connection.metadata)
        try:
            with StallGuard(call) as guard, connection.translated_errors():
                messages.guard = guard
                response = call.result(timeout=None)
        except grpc.FutureCancelledError:
            raise UnavailableError(f"the upload to {connection.server} stalled") from None
        except PruningClientError:
            if messages.error is not None:
                raise messages.error from None
            raise
        finally:
            call.cancel()  # does nothing once it has ended; on Ctrl-C it frees the file
    if messages.error is not None:
        raise messages.error
    return artifact_from_wire(response.artifact)
