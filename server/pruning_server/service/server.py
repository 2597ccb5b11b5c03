"""The gRPC server: its threads, its options with their reasons, its services, its start and its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass

import grpc
from grpc_reflection.v1alpha import reflection

from pruning_api.v1 import (
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    pruning_job_service_pb2,
    pruning_job_service_pb2_grpc,
)
from pruning_server.errors import InvalidRequestError
from pruning_server.jobs.inspection import InspectionService
from pruning_server.jobs.ports import ArtifactStore, Clock, Metrics
from pruning_server.jobs.service import JobService
from pruning_server.service.artifacts import ArtifactServicer
from pruning_server.service.health import Health
from pruning_server.service.interceptors import CallInterceptor, RpcMetrics
from pruning_server.service.jobs import PruningJobServicer, ServerFacts
from pruning_server.service.limits import CallGroup, LimitInterceptor
from pruning_server.service.stalls import StallWatch

ARTIFACTS = artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"].full_name
JOBS = pruning_job_service_pb2.DESCRIPTOR.services_by_name["PruningJobService"].full_name
REFLECTION = reflection.SERVICE_NAME
SERVICES = (ARTIFACTS, JOBS)

# For calls that are over at once.
SPARE_THREADS = 16
MAX_REFLECTIONS = 4

OPTIONS: tuple[tuple[str, int], ...] = (
    # What every client expects; files travel in small messages, so nothing needs more.
    ("grpc.max_receive_message_length", 4 * 2**20),
    # Otherwise a second server could listen on the same port, and each would get half of the calls.
    ("grpc.so_reuseport", 0),
    # Finds out within 80 s that a watcher's or an uploader's machine is gone, and frees its thread.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients may ask every 10 s whether we live; the default ends the connection of one that asks twice in 5 minutes.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # ... also while they only hold the connection.
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True)
class TlsFiles:
    """Contents of PEM files; `client_ca`: clients must show a certificate that it signed."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


@dataclass(frozen=True)
class CallLimits:
    """How many calls of a kind may run at a time.

    Attributes:
        watches: of WatchPruningJob.
        transfers: uploads and downloads together.
        submissions: CreatePruningJob, which may wait for the gate.
        inspections: InspectModel, most of which wait for their turn.
        stall_seconds: how long a transfer may wait for its other side.
    """

    watches: int = 256
    transfers: int = 32
    submissions: int = 32
    inspections: int = 8
    stall_seconds: float = 120.0

    @property
    def threads(self) -> int:
        """Enough that calls of these kinds never take the last thread."""
        lasting = self.watches + self.transfers + self.submissions + self.inspections
        return lasting + MAX_REFLECTIONS + SPARE_THREADS


@dataclass(frozen=True)
class Parts:
    """What the services need of the rest of the server."""

    jobs: JobService
    inspections: InspectionService
    artifacts: ArtifactStore
    metrics: Metrics
    rpc_metrics: RpcMetrics
    clock: Clock
    facts: ServerFacts


class GrpcServer:
    """Both services, health and reflection on one port.

    Args:
        parts: what they need.
        address: HOST:PORT, [IPV6]:PORT or unix:PATH; port 0 takes any free one.
        tls: None: in the clear.
        limits: bounds of concurrency.

    Raises:
        InvalidRequestError: the address cannot be listened on, or the TLS files do not fit.
    """

    def __init__(
        self, parts: Parts, address: str, *, tls: TlsFiles | None = None, limits: CallLimits | None = None
    ) -> None:
        limits = limits or CallLimits()
        monotonic = parts.clock.monotonic
        self._pool = futures.ThreadPoolExecutor(limits.threads, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._pool,
            interceptors=[CallInterceptor(parts.rpc_metrics, monotonic), LimitInterceptor(_groups(limits))],
            options=OPTIONS,
        )
        self._stalls = StallWatch(limits.stall_seconds, monotonic)
        self._jobs = PruningJobServicer(parts.jobs, parts.inspections, parts.facts, parts.metrics, parts.clock)
        artifacts = ArtifactServicer(parts.artifacts, parts.metrics, self._stalls)
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, self._server)
        pruning_job_service_pb2_grpc.add_PruningJobServiceServicer_to_server(self._jobs, self._server)
        self._health = Health(self._server, SERVICES)
        reflection.enable_server_reflection((*SERVICES, "grpc.health.v1.Health", REFLECTION), self._server)
        self.address = _bind(self._server, address, tls)

    def start(self) -> None:
        """Serves from now on."""
        self._stalls.start()
        self._server.start()
        self._health.serving()

    def stop_welcoming(self) -> None:
        """Tells whoever asks that no new calls should come; calls are still answered."""
        self._health.stopping()

    def stop(self, grace_seconds: float) -> bool:
        """Ends every watch, gives other calls `grace_seconds`, cancels them, and waits for their threads as long again.

        Returns:
            whether all of them have ended: only then does nothing of the server use its stores any more.
        """
        self._jobs.end_watches()
        self._server.stop(grace_seconds).wait()
        self._stalls.stop()
        return _ended(self._pool.shutdown, grace_seconds)


def _groups(limits: CallLimits) -> dict[str, CallGroup]:
    transfers = CallGroup("uploads and downloads", limits.transfers, retry_after_seconds=5.0)
    return {
        f"{ARTIFACTS}/WriteArtifact": transfers,
        f"{ARTIFACTS}/ReadArtifact": transfers,
        f"{JOBS}/WatchPruningJob": CallGroup("watches", limits.watches, retry_after_seconds=10.0),
        f"{JOBS}/CreatePruningJob": CallGroup("submissions", limits.submissions, retry_after_seconds=2.0),
        f"{JOBS}/InspectModel": CallGroup("inspections", limits.inspections, retry_after_seconds=10.0),
        f"{REFLECTION}/ServerReflectionInfo": CallGroup("reflections", MAX_REFLECTIONS, retry_after_seconds=5.0),
    }


def _bind(server: grpc.Server, address: str, tls: TlsFiles | None) -> str:
    """Listens on the address and returns it with the port that was bound."""
    try:
        port = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, _credentials(tls))
    except (RuntimeError, ValueError) as error:
        raise InvalidRequestError.for_field(
            "address",
            f"cannot listen on {address}: it is taken, or no address of this machine; choose another one, or port 0 for"
            " any free port",
        ) from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(tls.key, tls.certificate)],
        root_certificates=tls.client_ca,
        require_client_auth=tls.client_ca is not None,
    )


def _ended(wait: Callable[[], None], timeout_seconds: float) -> bool:
    """Whether what may block for ever is over in time."""
    waiter = threading.Thread(target=wait, name="stop", daemon=True)
    waiter.start()
    waiter.join(timeout_seconds)
    return not waiter.is_alive()
