"""The ArtifactService: protobuf to the artifact store and back, a message at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO, cast

import google_crc32c
import grpc

from pruning_api.v1 import artifact_pb2, artifact_service_pb2, artifact_service_pb2_grpc
from pruning_server.errors import ChecksumError, InvalidRequestError, Reason, ServiceError, UnavailableError
from pruning_server.jobs.ports import Artifact, ArtifactStore, Metrics, UploadWriter
from pruning_server.service import converters_common as common
from pruning_server.service.converters_artifacts import artifact_to_wire
from pruning_server.service.principal import principal_of
from pruning_server.service.stalls import Stall, StallWatch
from pruning_server.spec import ranges
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.problems import invalid, missing, refuse

MESSAGE_BYTES = 2**20
MAX_DISPLAY_NAME_CHARACTERS = 255

_REJECTIONS = {Reason.ARTIFACT_TOO_LARGE: "too_large", Reason.QUOTA_EXCEEDED: "quota"}
SENDABLE_KINDS = frozenset({ArtifactKind.TORCHSCRIPT, ArtifactKind.DATASET, ArtifactKind.LOSS})


class ArtifactServicer(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Files in and out. Holds one message of a transfer in memory, whatever the file's size."""

    def __init__(self, store: ArtifactStore, metrics: Metrics, stalls: StallWatch) -> None:
        self._store = store
        self._metrics = metrics
        self._stalls = stalls
        self._stopping = threading.Event()

    def end_transfers(self) -> None:
        """Ends every transfer at its next message: the server stops, and its callers go on with its successor."""
        self._stopping.set()

    def CreateArtifact(
        self, request: artifact_service_pb2.CreateArtifactRequest, context: grpc.ServicerContext
    ) -> artifact_service_pb2.CreateArtifactResponse:
        """Announces a file."""
        kind = _sendable_kind(request)
        try:
            artifact = self._store.create(
                principal_of(context), kind, request.sha256, request.size_bytes, request.display_name
            )
        except ServiceError as error:
            if error.reason in _REJECTIONS:
                self._metrics.job_rejected(_REJECTIONS[error.reason])
            raise
        return artifact_service_pb2.CreateArtifactResponse(artifact=artifact_to_wire(artifact))

    def WriteArtifact(
        self, request_iterator: Iterator[artifact_service_pb2.WriteArtifactRequest], context: grpc.ServicerContext
    ) -> artifact_service_pb2.WriteArtifactResponse:
        """Takes bytes; whatever ends the stream, those that arrived are kept and the upload can go on."""
        with self._stalls.watch(context.cancel) as stall:
            first = _next(request_iterator, stall)
            if first is None or not first.artifact_id:
                raise InvalidRequestError.for_field(
                    "artifact_id", "is needed in the first message of the stream", Reason.MISSING_FIELD
                )
            owner, artifact_id = principal_of(context), first.artifact_id
            with (
                self._metrics.transfer("upload") as moved,
                self._store.open_upload(owner, artifact_id) as writer,
            ):
                message: artifact_service_pb2.WriteArtifactRequest | None = first
                del first
                while message is not None:
                    self._write(writer, artifact_id, message)
                    moved(len(message.data))
                    if message.finish_write:
                        return _written(writer.finish())
                    self._check_open()
                    message = _next(request_iterator, stall)
                return _written(writer.suspend())

    def ReadArtifact(
        self, request: artifact_service_pb2.ReadArtifactRequest, context: grpc.ServicerContext
    ) -> Iterator[artifact_service_pb2.ReadArtifactResponse]:
        """Sends bytes from an offset on; the first message carries the artifact, also where no bytes follow."""
        owner = principal_of(context)
        artifact = self._store.get(owner, request.artifact_id)
        end = _end_of_read(artifact, request)
        with (
            closing(self._store.open_read(owner, artifact.artifact_id)) as file,
            self._metrics.transfer("download") as moved,
            self._stalls.watch(context.cancel) as stall,
        ):
            if request.offset > 0:
                self._metrics.transfer_resumed("download")
            file.seek(request.offset)
            for message in _messages(file, artifact, request.offset, end):
                self._check_open()
                with stall.waiting():
                    yield message
                moved(len(message.data))

    def GetArtifact(
        self, request: artifact_service_pb2.GetArtifactRequest, context: grpc.ServicerContext
    ) -> artifact_service_pb2.GetArtifactResponse:
        """Returns what is known of a file."""
        artifact = self._store.get(principal_of(context), request.artifact_id)
        return artifact_service_pb2.GetArtifactResponse(artifact=artifact_to_wire(artifact))

    def ListArtifacts(
        self, request: artifact_service_pb2.ListArtifactsRequest, context: grpc.ServicerContext
    ) -> artifact_service_pb2.ListArtifactsResponse:
        """Returns a page of files, newest first."""
        findings = common.Findings()
        kind = findings.member(common.ARTIFACT_KINDS, request.kind, "kind")
        refuse(findings.problems)
        artifacts, token = self._store.list(principal_of(context), kind, request.page_size, request.page_token)
        return artifact_service_pb2.ListArtifactsResponse(
            artifacts=[artifact_to_wire(artifact) for artifact in artifacts], next_page_token=token
        )

    def DeleteArtifact(
        self, request: artifact_service_pb2.DeleteArtifactRequest, context: grpc.ServicerContext
    ) -> artifact_service_pb2.DeleteArtifactResponse:
        """Deletes a file that no unfinished job uses."""
        self._store.delete(principal_of(context), request.artifact_id)
        return artifact_service_pb2.DeleteArtifactResponse()

    def _check_open(self) -> None:
        if self._stopping.is_set():
            raise UnavailableError(
                Reason.DRAINING, "the server is stopping; go on later from where the transfer stands"
            )

    def _write(
        self, writer: UploadWriter, artifact_id: str, message: artifact_service_pb2.WriteArtifactRequest
    ) -> None:
        """Checks one message and appends its bytes."""
        if message.artifact_id not in {"", artifact_id}:
            raise InvalidRequestError.for_field("artifact_id", "changes within the stream; open a stream per artifact")
        if len(message.data) > MESSAGE_BYTES:
            raise InvalidRequestError.for_field(
                "data", f"has {len(message.data)} bytes; send at most {MESSAGE_BYTES} per message"
            )
        if message.HasField("crc32c") and google_crc32c.value(message.data) != message.crc32c:
            self._metrics.checksum_failed("upload")
            raise ChecksumError(
                Reason.CHUNK_CHECKSUM_MISMATCH,
                f"the {len(message.data)} bytes at offset {message.offset} do not match their crc32c; send them again",
                metadata={"offset": str(message.offset)},
            )
        writer.write(message.offset, message.data)
        if message.artifact_id and message.offset > 0:
            self._metrics.transfer_resumed("upload")


def _next(
    messages: Iterator[artifact_service_pb2.WriteArtifactRequest], stall: Stall
) -> artifact_service_pb2.WriteArtifactRequest | None:
    with stall.waiting():
        return next(messages, None)


def _written(artifact: Artifact) -> artifact_service_pb2.WriteArtifactResponse:
    return artifact_service_pb2.WriteArtifactResponse(artifact=artifact_to_wire(artifact))


def _sendable_kind(request: artifact_service_pb2.CreateArtifactRequest) -> ArtifactKind:
    """Returns the kind, or refuses what a caller cannot send."""
    findings = common.Findings()
    kind = findings.member(common.ARTIFACT_KINDS, request.kind, "kind")
    if request.kind == artifact_pb2.ARTIFACT_KIND_UNSPECIFIED:
        findings.add(missing("kind", "is needed: a TorchScript archive, a dataset or a loss"))
    elif kind is not None and kind not in SENDABLE_KINDS:
        findings.add(invalid("kind", f"files of kind {kind.value} are written by the service only"))
    why = ranges.text(0, MAX_DISPLAY_NAME_CHARACTERS)(request.display_name)
    if why is not None:
        findings.add(invalid("display_name", why))
    refuse(findings.problems)
    return cast("ArtifactKind", kind)  # None was refused above


def _end_of_read(artifact: Artifact, request: artifact_service_pb2.ReadArtifactRequest) -> int:
    if request.offset > artifact.size_bytes:
        raise InvalidRequestError.for_field(
            "offset", f"{request.offset} is beyond the end: the file has {artifact.size_bytes} bytes"
        )
    if request.limit_bytes == 0:
        return artifact.size_bytes
    return min(artifact.size_bytes, request.offset + request.limit_bytes)


def _messages(
    file: BinaryIO, artifact: Artifact, offset: int, end: int
) -> Iterator[artifact_service_pb2.ReadArtifactResponse]:
    described: artifact_pb2.Artifact | None = artifact_to_wire(artifact)
    while described is not None or offset < end:
        data = file.read(min(MESSAGE_BYTES, end - offset))
        if not data and offset < end:
            raise ChecksumError(
                Reason.CONTENT_MISMATCH,
                f"the stored file ends at byte {offset} of {artifact.size_bytes}; it must be uploaded again",
            )
        yield artifact_service_pb2.ReadArtifactResponse(
            artifact=described, offset=offset, data=data, crc32c=google_crc32c.value(data)
        )
        offset += len(data)
        described = None
