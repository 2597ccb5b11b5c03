"""Fetches a file: to `.part` first, on from its length after every cut, and renamed only once its SHA-256 is right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Protocol

import google_crc32c

from pruning_api.v1 import artifact_service_pb2 as api
from pruning_client.connection import Connection
from pruning_client.errors import (
    BadInputError,
    CallCancelledError,
    DataLossError,
    FailedPreconditionError,
    PruningClientError,
    UnavailableError,
)
from pruning_client.retries import Outage, may_be_endured
from pruning_client.transfer.stall import StallGuard
from pruning_client.transfer.upload import ProgressCallback
from pruning_client.values import Artifact, ArtifactState
from pruning_client.wire.answers import artifact_from_wire

_BLOCK_BYTES = 1 << 20


def download(
    connection: Connection, artifact_id: str, path: str | Path, progress: ProgressCallback | None = None
) -> Artifact:
    """Writes the artifact's bytes to `path`, replacing what is there in one step, and returns the artifact.

    Raises:
        BadInputError: `path` cannot be written.
        DataLossError: the bytes that came do not have the artifact's SHA-256; `path` is as it was.
        PruningClientError: the server refused it, or could not be reached for too long.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    response = connection.unary(connection.artifacts.GetArtifact, api.GetArtifactRequest(artifact_id=artifact_id))
    artifact = artifact_from_wire(response.artifact)
    if artifact.state is not ArtifactState.ACTIVE:
        raise FailedPreconditionError(
            f"artifact {artifact_id} is not complete on the server", reason="ARTIFACT_NOT_ACTIVE"
        )
    part = path.with_name(f"{path.name}.part")
    try:
        _fetch_verified(connection, artifact, part, progress)
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise BadInputError(f"cannot write {path}: {error.strerror}", reason="OUTPUT_NOT_WRITABLE") from error
    return artifact


def _fetch_verified(connection: Connection, artifact: Artifact, part: Path, progress: ProgressCallback | None) -> None:
    while True:
        is_resumed = part.exists() and part.stat().st_size > 0
        sha256 = _fetch(connection, artifact, part, progress)
        if sha256 == artifact.sha256:
            return
        part.unlink()
        if not is_resumed:
            raise DataLossError(
                f"the bytes of artifact {artifact.artifact_id} arrived with SHA-256 {sha256}, not {artifact.sha256}",
                reason="CONTENT_MISMATCH",
            )
        # What was left there belonged to another file: once more, from the start.


def _fetch(connection: Connection, artifact: Artifact, part: Path, progress: ProgressCallback | None) -> str:
    """Completes `part`, durably, and returns its SHA-256."""
    with part.open("r+b" if part.exists() else "w+b") as file:
        if part.stat().st_size > artifact.size_bytes:
            file.truncate(0)
        sink = _Sink(file, artifact.size_bytes, progress)
        outage = Outage(connection.policy, connection.timing)
        outage.over()
        while sink.offset < artifact.size_bytes:
            before = sink.offset
            try:
                _read_into(connection, artifact.artifact_id, sink)
                error: PruningClientError = UnavailableError("the server ended the download before the file's end")
            except PruningClientError as cut:
                if not (may_be_endured(cut) or isinstance(cut, DataLossError)):
                    raise
                error = cut
            if sink.offset > before:
                outage.over()
            if sink.offset < artifact.size_bytes:
                outage.endure(error)
        file.flush()
        os.fsync(file.fileno())
        return sink.sha256.hexdigest()


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Sink:
    """Appends to a file and hashes what is in it; starts behind what the file has already."""

    def __init__(self, file: BinaryIO, size_bytes: int, progress: ProgressCallback | None) -> None:
        self.sha256: _Hash = hashlib.sha256()
        self.offset = 0
        self._file = file
        self._size_bytes = size_bytes
        self._progress = progress
        file.seek(0)
        while block := file.read(_BLOCK_BYTES):
            self.sha256.update(block)
            self.offset += len(block)

    def write(self, data: bytes) -> None:
        """Appends `data`."""
        self._file.write(data)
        self.sha256.update(data)
        self.offset += len(data)
        if self._progress is not None:
            self._progress(self.offset, self._size_bytes)


def _read_into(connection: Connection, artifact_id: str, sink: _Sink) -> None:
    """Appends what the server sends until the stream ends.

    Raises:
        DataLossError: a message is damaged or out of order; what came before it is kept.
        UnavailableError: the connection was cut, or nothing came for too long.
    """
    call = connection.artifacts.ReadArtifact(
        api.ReadArtifactRequest(artifact_id=artifact_id, offset=sink.offset), metadata=connection.metadata
    )
    with StallGuard(call) as guard:
        try:
            with connection.translated_errors():
                for message in call:
                    guard.beat()
                    if not message.data:
                        continue
                    if message.offset != sink.offset or google_crc32c.value(message.data) != message.crc32c:
                        raise DataLossError(f"bytes at {sink.offset} arrived damaged", reason="CHUNK_CHECKSUM_MISMATCH")
                    sink.write(message.data)
        except CallCancelledError as error:
            raise UnavailableError(f"the download from {connection.server} stalled") from error
        finally:
            call.cancel()  # does nothing once it has ended


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
