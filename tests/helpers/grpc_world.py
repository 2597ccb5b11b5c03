"""The gRPC service with real parts on a free port; only the worker is a stand-in, and the gate copies."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import google_crc32c
import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from helpers.job_world import MEMORY_BYTES, World
from pruning_api.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    pruning_job_pb2,
    pruning_job_service_pb2,
    pruning_job_service_pb2_grpc,
    spec_pb2,
)
from pruning_server.jobs.access import TlsFiles
from pruning_server.jobs.fetching import UriResolver
from pruning_server.jobs.inspection import InspectionService
from pruning_server.jobs.ports import CancelToken, Inspector
from pruning_server.jobs.service import JobLimits, JobService
from pruning_server.service.jobs import ServerFacts
from pruning_server.service.server import Access, CallLimits, GrpcServer, Parts
from pruning_server.spec.inspection import Inspection, InspectionRequest

FACTS = ServerFacts(
    version="0.test",
    max_artifact_bytes=2**30,
    queue_capacity_jobs=5,
    max_attempts=3,
    retention_seconds=3600.0,
    default_timeout_seconds=60.0,
    cpu_slots=2,
    cuda_slots_per_device=1,
    sandboxed=False,
    heartbeat_seconds=0.2,
)


class UnusedInspector:
    """For tests that inspect nothing."""

    def inspect(self, owner: str, request: InspectionRequest, cancelled: CancelToken) -> Inspection:
        raise AssertionError((owner, request, cancelled))


class GrpcWorld:
    """A server, the stubs to call it, and the world behind it; a context manager.

    The scheduler does not run unless `running`: jobs then stay queued.
    """

    def __init__(
        self,
        folder: Path,
        *,
        running: bool = False,
        limits: CallLimits | None = None,
        tls: TlsFiles | Callable[[], TlsFiles] | None = None,
        address: str = "127.0.0.1:0",
        inspect: Callable[[World], Inspector] | None = None,
        access: Access | None = None,
        uris: Callable[[World], UriResolver] | None = None,
    ) -> None:
        self.world = World(folder)
        self.scheduler = self.world.scheduler()
        self._running = running
        resolver = None if uris is None else uris(self.world)
        self.jobs_service = JobService(
            store=self.world.store,
            artifacts=self.world.artifacts,
            gate=self.world.gate,
            probe=self.world.probe,
            runs=self.scheduler,
            broker=self.world.broker,
            metrics=self.world.metrics,
            clock=self.world.clock,
            limits=JobLimits(queue_capacity=FACTS.queue_capacity_jobs, memory_bytes=MEMORY_BYTES),
            uris=resolver,
        )
        parts = Parts(
            self.jobs_service,
            InspectionService(
                self.world.artifacts, UnusedInspector() if inspect is None else inspect(self.world), resolver
            ),
            self.world.artifacts,
            self.world.metrics,
            self.world.metrics,
            self.world.clock,
            FACTS,
        )
        try:
            source = tls if tls is None or callable(tls) else lambda: tls
            self.server = GrpcServer(parts, address, tls=source, limits=limits, access=access)
        except BaseException:
            self.world.close()
            raise
        self.channel = grpc.insecure_channel(self.server.address)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(self.channel)
        self.jobs = pruning_job_service_pb2_grpc.PruningJobServiceStub(self.channel)

    def __enter__(self) -> Self:
        self.server.start()
        if self._running:
            self.scheduler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.channel.close()
        if self._running:
            self.scheduler.stop(0.0)
        assert self.server.stop(2.0), "a call did not end"
        self.world.close()

    # --- files --------------------------------------------------------------------------------------------------------

    def create(
        self, content: bytes, kind: int = artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT, name: str = "model.pt"
    ) -> artifact_pb2.Artifact:
        """Announces a file."""
        request = artifact_service_pb2.CreateArtifactRequest(
            kind=kind, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), display_name=name
        )
        return self.artifacts.CreateArtifact(request, timeout=10).artifact

    def upload(self, content: bytes, kind: int = artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT) -> str:
        """Sends a whole file and returns its id."""
        artifact = self.create(content, kind)
        if artifact.state != artifact_pb2.ARTIFACT_STATE_ACTIVE:
            artifact = self.artifacts.WriteArtifact(messages(artifact.artifact_id, content), timeout=30).artifact
        assert artifact.state == artifact_pb2.ARTIFACT_STATE_ACTIVE
        return artifact.artifact_id

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def spec(self, *behaviours: str, **fields: Any) -> spec_pb2.PruningSpec:
        """A request whose worker does what `behaviours` name; see standin_worker."""
        defaults = {
            "model": spec_pb2.ArtifactSource(artifact_id=self.upload(b"a model")),
            "validation": spec_pb2.ArtifactSource(
                artifact_id=self.upload(b"a dataset", artifact_pb2.ARTIFACT_KIND_DATASET)
            ),
            "static": spec_pb2.StaticStrategy(),
            "sparsity": 0.5,
            "device": "cpu",
            "exclude_layers": behaviours,
        }
        return spec_pb2.PruningSpec(**(defaults | fields))

    def submit(self, spec: spec_pb2.PruningSpec | None = None, **fields: Any) -> pruning_job_pb2.PruningJob:
        """Queues a job."""
        request = pruning_job_service_pb2.CreatePruningJobRequest(
            **({"request_id": str(uuid.uuid4()), "spec": self.spec() if spec is None else spec} | fields)
        )
        return self.jobs.CreatePruningJob(request, timeout=20).job

    def watch(self, job_id: str, after_sequence: int = 0, timeout: float = 20.0) -> Any:
        """Opens a watch; its call is an iterator of responses."""
        request = pruning_job_service_pb2.WatchPruningJobRequest(job_id=job_id, after_sequence=after_sequence)
        return self.jobs.WatchPruningJob(request, timeout=timeout)


def messages(
    artifact_id: str, content: bytes, offset: int = 0, size: int = 2**20, *, finish: bool = True
) -> Iterator[artifact_service_pb2.WriteArtifactRequest]:
    """The stream that sends `content` from `offset` on."""
    while True:
        data = content[offset : offset + size]
        end = offset + len(data)
        yield artifact_service_pb2.WriteArtifactRequest(
            artifact_id=artifact_id,
            offset=offset,
            data=data,
            crc32c=google_crc32c.value(data),
            finish_write=finish and end >= len(content),
        )
        if end >= len(content):
            return
        artifact_id, offset = "", end


class Refusal:
    """What a status says."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code: grpc.StatusCode = error.code()
        self.message: str = error.details()
        self.reason, self.domain = "", ""
        self.metadata: dict[str, str] = {}
        self.violations: dict[str, str] = {}
        self.retry_after_seconds: float | None = None
        status = rpc_status.from_call(error)
        for packed in () if status is None else status.details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if packed.Unpack(info):
                self.reason, self.domain, self.metadata = info.reason, info.domain, dict(info.metadata)
            elif packed.Unpack(bad):
                self.violations = {violation.field: violation.description for violation in bad.field_violations}
            elif packed.Unpack(retry):
                self.retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
