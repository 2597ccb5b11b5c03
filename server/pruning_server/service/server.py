"""The gRPC server: its threads, its options with their reasons, its services, its start and its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
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
from pruning_server.jobs.access import RateLimiter, Role, TlsFiles, TokenBook
from pruning_server.jobs.inspection import InspectionService
from pruning_server.jobs.ports import ArtifactStore, Clock, Metrics
from pruning_server.jobs.service import JobService
from pruning_server.service.artifacts import ArtifactServicer
from pruning_server.service.health import Health
from pruning_server.service.interceptors import CallInterceptor, RpcMetrics
from pruning_server.service.jobs import PruningJobServicer, ServerFacts
from pruning_server.service.limits import CallGroup, LimitInterceptor
from pruning_server.service.principal import AccessInterceptor, Authenticator
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


# What each method needs of its caller, where callers are told apart; health is for everybody.
ROLES: Mapping[str, Role | None] = {
    **{f"{ARTIFACTS}/{name}": Role.READ for name in ("GetArtifact", "ListArtifacts", "ReadArtifact")},
    **{f"{ARTIFACTS}/{name}": Role.SUBMIT for name in ("CreateArtifact", "WriteArtifact", "DeleteArtifact")},
    **{
        f"{JOBS}/{name}": Role.READ
        for name in ("GetPruningJob", "ListPruningJobs", "WatchPruningJob", "ListStrategies", "GetServerInfo")
    },
    **{
        f"{JOBS}/{name}": Role.SUBMIT
        for name in ("CreatePruningJob", "CancelPruningJob", "DeletePruningJob", "InspectModel")
    },
    f"{REFLECTION}/ServerReflectionInfo": Role.READ,
    "grpc.health.v1.Health/Check": None,
    "grpc.health.v1.Health/List": None,
    "grpc.health.v1.Health/Watch": None,
}


TlsSource = Callable[[], TlsFiles]


@dataclass(frozen=True)
class Access:
    """Who may call. `certificates`: client certificates name principals; `requests_per_second`: of each principal."""

    tokens: TokenBook | None = None
    certificates: bool = False
    requests_per_second: float | None = None


@dataclass(frozen=True)
class CallLimits:
    """How many calls of a kind may run at a time.

    Attributes:
        watches: of WatchPruningJob.
        transfers: uploads and downloads together.
        submissions: CreatePruningJob, which may wait for the gate.
        inspections: InspectModel, most of which wait for their turn.
        stall_seconds: how long a transfer or a watch may wait for its other side to send or to read.
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
        tls: asked for the files at every handshake; None: in the clear.
        limits: bounds of concurrency.
        access: who may call.

    Raises:
        InvalidRequestError: the address cannot be listened on, or the TLS files do not fit.
    """

    def __init__(
        self,
        parts: Parts,
        address: str,
        *,
        tls: TlsSource | None = None,
        limits: CallLimits | None = None,
        access: Access | None = None,
    ) -> None:
        limits, access = limits or CallLimits(), access or Access()
        monotonic = parts.clock.monotonic
        authenticator = Authenticator(access.tokens, certificates=access.certificates)
        rate = access.requests_per_second
        self._pool = futures.ThreadPoolExecutor(limits.threads, thread_name_prefix="grpc")
        self._server = grpc.server(
            self._pool,
            interceptors=[
                CallInterceptor(parts.rpc_metrics, monotonic),
                AccessInterceptor(authenticator, ROLES, None if rate is None else RateLimiter(rate, monotonic)),
                LimitInterceptor(_groups(limits, shared=authenticator.is_on)),
            ],
            options=OPTIONS,
        )
        self._stalls = StallWatch(limits.stall_seconds, monotonic)
        self._jobs = PruningJobServicer(
            parts.jobs, parts.inspections, parts.facts, parts.metrics, parts.clock, self._stalls
        )
        self._artifacts = ArtifactServicer(parts.artifacts, parts.metrics, self._stalls)
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(self._artifacts, self._server)
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
        """Ends watches, gives other calls `grace_seconds`, cancels them, and waits as long for their threads.

        Transfers that half of the grace is not enough for are told that the server stops, so that they go on later.

        Returns:
            whether all of them have ended: only then does nothing of the server use its stores any more.
        """
        self._jobs.end_watches()
        stopped = self._server.stop(grace_seconds)
        if not stopped.wait(grace_seconds / 2):
            self._artifacts.end_transfers()
        stopped.wait()
        self._stalls.stop()
        return _ended(self._pool.shutdown, grace_seconds)


def _groups(limits: CallLimits, *, shared: bool) -> dict[str, CallGroup]:
    """Bounds per method; where callers are told apart, one of them gets at most half of the places."""

    def group(what: str, limit: int, retry_after_seconds: float) -> CallGroup:
        return CallGroup(what, limit, retry_after_seconds, per_caller=max(1, limit // 2) if shared else None)

    transfers = group("uploads and downloads", limits.transfers, 5.0)
    return {
        f"{ARTIFACTS}/WriteArtifact": transfers,
        f"{ARTIFACTS}/ReadArtifact": transfers,
        f"{JOBS}/WatchPruningJob": group("watches", limits.watches, 10.0),
        f"{JOBS}/CreatePruningJob": group("submissions", limits.submissions, 2.0),
        f"{JOBS}/InspectModel": group("inspections", limits.inspections, 10.0),
        f"{REFLECTION}/ServerReflectionInfo": group("reflections", MAX_REFLECTIONS, 5.0),
    }


def _bind(server: grpc.Server, address: str, tls: TlsSource | None) -> str:
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


def _credentials(tls: TlsSource) -> grpc.ServerCredentials:
    """Credentials that follow the files: every handshake uses those that are current then."""
    first = tls()
    used = first

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        now = tls()
        if now is used:
            return None  # as before
        used = now
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        newer,  # type: ignore[arg-type]  # None is how it says "as before"
        require_client_authentication=first.client_ca is not None,
    )


def _configuration(tls: TlsFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], root_certificates=tls.client_ca)


def _ended(wait: Callable[[], None], timeout_seconds: float) -> bool:
    """Whether what may block for ever is over in time."""
    waiter = threading.Thread(target=wait, name="stop", daemon=True)
    waiter.start()
    waiter.join(timeout_seconds)
    return not waiter.is_alive()
