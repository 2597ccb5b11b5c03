"""An artifact service in memory that speaks the real protocol, for tests of the client."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from pruning_api.v1 import artifact_pb2, artifact_service_pb2, artifact_service_pb2_grpc

MIB = 1 << 20


def status(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    violations: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    retry_after_seconds: float | None = None,
) -> grpc.Status:
    """A status with the details that the real service attaches."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="pruning", metadata=metadata or {})]
    if violations:
        bad = error_details_pb2.BadRequest()
        for field, description in violations.items():
            bad.field_violations.add(field=field, description=description)
        details.append(bad)
    if retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(retry_after_seconds * 1e9))
        details.append(retry)
    packed = []
    for detail in details:
        one = any_pb2.Any()
        one.Pack(detail)
        packed.append(one)
    return rpc_status.to_status(status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message, details=packed))


class Script:
    """Answers that a test wants instead of the usual ones, by method; each is used once, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, list[grpc.Status]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, str]] = []

    def answer(self, method: str, *answers: grpc.Status) -> None:
        """The next calls of `method` end with these."""
        with self._lock:
            self._answers.setdefault(method, []).extend(answers)

    def enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        """Notes a call, and ends it where the script says so."""
        with self._lock:
            self.calls.append((method, request))
            self.metadata.append({str(k): str(v) for k, v in context.invocation_metadata()})
            waiting = self._answers.get(method)
            answer = waiting.pop(0) if waiting else None
        if answer is not None:
            context.abort_with_status(answer)

    def count(self, method: str) -> int:
        """How often `method` was called."""
        with self._lock:
            return sum(name == method for name, _ in self.calls)


class FakeArtifacts(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """Artifacts by id, in memory, with the checks of the real store."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.artifacts: dict[str, artifact_pb2.Artifact] = {}
        self.content: dict[str, bytearray] = {}
        # Called with every message of an upload; a test may raise or wait in it.
        self.on_write: Callable[[artifact_service_pb2.WriteArtifactRequest], None] = lambda _request: None
        self.damage_read: set[int] = set()

    def put(self, data: bytes, kind: int = artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT) -> str:
        """Stores a complete artifact and returns its id."""
        sha256 = hashlib.sha256(data).hexdigest()
        artifact_id = f"art-{sha256[:16]}"
        self.artifacts[artifact_id] = artifact_pb2.Artifact(
            artifact_id=artifact_id, kind=kind, state=artifact_pb2.ARTIFACT_STATE_ACTIVE, size_bytes=len(data),
            sha256=sha256, committed_size_bytes=len(data),
        )  # fmt: skip
        self.content[artifact_id] = bytearray(data)
        return artifact_id

    def CreateArtifact(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("CreateArtifact", request, context)
        artifact_id = f"art-{request.sha256[:16]}"
        if artifact_id not in self.artifacts:
            self.artifacts[artifact_id] = artifact_pb2.Artifact(
                artifact_id=artifact_id, kind=request.kind, state=artifact_pb2.ARTIFACT_STATE_PENDING,
                size_bytes=request.size_bytes, sha256=request.sha256, display_name=request.display_name,
            )  # fmt: skip
            self.content[artifact_id] = bytearray()
        return artifact_service_pb2.CreateArtifactResponse(artifact=self.artifacts[artifact_id])

    def WriteArtifact(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("WriteArtifact", None, context)
        artifact_id, finished = "", False
        for request in request_iterator:
            self.on_write(request)
            artifact_id = artifact_id or request.artifact_id
            data = self._find(artifact_id, context)[1]
            if request.offset != len(data):
                context.abort_with_status(
                    status(
                        grpc.StatusCode.OUT_OF_RANGE, "WRONG_OFFSET", "continue elsewhere",
                        metadata={"committed_size_bytes": str(len(data))},
                    )
                )  # fmt: skip
            if len(request.data) > MIB or google_crc32c.value(request.data) != request.crc32c:
                context.abort_with_status(status(grpc.StatusCode.DATA_LOSS, "CHUNK_CHECKSUM_MISMATCH", "damaged"))
            data.extend(request.data)
            self.artifacts[artifact_id].committed_size_bytes = len(data)
            finished = request.finish_write
        artifact, data = self._find(artifact_id, context)
        if finished:
            if hashlib.sha256(data).hexdigest() != artifact.sha256:
                data.clear()
                artifact.committed_size_bytes = 0
                context.abort_with_status(status(grpc.StatusCode.DATA_LOSS, "CONTENT_MISMATCH", "another file"))
            artifact.state = artifact_pb2.ARTIFACT_STATE_ACTIVE
        return artifact_service_pb2.WriteArtifactResponse(artifact=artifact)

    def ReadArtifact(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.script.enter("ReadArtifact", request, context)
        artifact, data = self._find(request.artifact_id, context)
        for offset in range(request.offset, len(data), MIB):
            block = bytes(data[offset : offset + MIB])
            response = artifact_service_pb2.ReadArtifactResponse(
                offset=offset, data=block, crc32c=google_crc32c.value(block)
            )
            if offset == request.offset:
                response.artifact.CopyFrom(artifact)
            if offset in self.damage_read:
                self.damage_read.discard(offset)
                response.data = b"\0" + block[1:]
            yield response

    def GetArtifact(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("GetArtifact", request, context)
        return artifact_service_pb2.GetArtifactResponse(artifact=self._find(request.artifact_id, context)[0])

    def ListArtifacts(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("ListArtifacts", request, context)
        found = [a for a in self.artifacts.values() if request.kind in (0, a.kind)]
        start = int(request.page_token or 0)
        end = start + (request.page_size or 100)
        return artifact_service_pb2.ListArtifactsResponse(
            artifacts=found[start:end], next_page_token=str(end) if end < len(found) else ""
        )

    def DeleteArtifact(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.script.enter("DeleteArtifact", request, context)
        self._find(request.artifact_id, context)
        del self.artifacts[request.artifact_id], self.content[request.artifact_id]
        return artifact_service_pb2.DeleteArtifactResponse()

    def _find(self, artifact_id: str, context: grpc.ServicerContext) -> tuple[artifact_pb2.Artifact, bytearray]:
        if artifact_id not in self.artifacts:
            context.abort_with_status(
                status(grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND", f"no artifact {artifact_id}")
            )
        return self.artifacts[artifact_id], self.content[artifact_id]
