"""The parts of a running server and how they hang together; started and stopped by `__main__`."""

from __future__ import annotations

import logging
import platform
from contextlib import ExitStack
from dataclasses import dataclass

from pruning_server import __version__
from pruning_server.adapters.artifact_store import LocalArtifactStore
from pruning_server.adapters.cgroups import delegated
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.containment import Containment
from pruning_server.adapters.data_folder import DataFolder
from pruning_server.adapters.executor import ExecutorLimits, LocalExecutor
from pruning_server.adapters.failpoints import Failpoints, no_failpoints
from pruning_server.adapters.gate import GateProcess
from pruning_server.adapters.inspector import InspectionLimits, LocalInspector
from pruning_server.adapters.job_store import SqliteJobStore
from pruning_server.adapters.metrics import BuildInfo, LiveSources, MeasuredDatabase, PrometheusMetrics, StorageUsage
from pruning_server.adapters.pem_files import watch_tls
from pruning_server.adapters.probe import WorkerProbe
from pruning_server.adapters.sandbox_trial import require_sandbox
from pruning_server.adapters.token_file import TokenFile
from pruning_server.adapters.uris import UriFetcher, UriPolicy
from pruning_server.adapters.watched_file import WatchedFiles
from pruning_server.errors import UnavailableError
from pruning_server.jobs.access import TlsFiles
from pruning_server.jobs.broker import ChangeBroker
from pruning_server.jobs.fetching import NoUris, UriResolver
from pruning_server.jobs.inspection import InspectionService
from pruning_server.jobs.probe import Probe
from pruning_server.jobs.scheduler import Scheduler, SchedulerOptions
from pruning_server.jobs.service import JobLimits, JobService
from pruning_server.service.jobs import ServerFacts
from pruning_server.service.server import Access, CallLimits, GrpcServer, Parts
from pruning_server.settings import Settings, is_loopback

HEARTBEAT_SECONDS = 15.0
# For calls that are being answered when the server stops; watches are ended before.
CALL_GRACE_SECONDS = 3.0
# Processes that inspect models come on top of those of jobs, and each may take as much memory as a job.
MAX_INSPECTIONS = 2
# Each holds one of the places for submissions for as long as the other side takes.
MAX_FETCHES = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addresses:
    """What was bound."""

    address: str
    metrics_address: str


class Server:
    """A whole server on one data folder. `failpoints`: where tests make it fail.

    Raises:
        PreconditionError: the data folder is in use, not ours, or cannot be read and written; or the machine cannot contain
            workers, and nobody accepted that.
        InvalidRequestError: an address is taken, or the TLS files do not fit.
    """

    def __init__(self, settings: Settings, failpoints: Failpoints = no_failpoints) -> None:
        self._settings = settings
        self._failpoints = failpoints
        self._draining = False
        access = AccessFiles.read(settings)
        # Undoes what was opened if a later step fails; kept for `stop` if none does.
        with ExitStack() as opened:
            self._folder = DataFolder(settings.data_dir)
            opened.callback(self._folder.close)
            self._sandbox = None if settings.insecure_no_sandbox else require_sandbox(self._folder.runs, SystemClock())
            self._metrics = PrometheusMetrics()
            opened.callback(self._metrics.close)
            with self._folder.faults_explained():
                self._database = MeasuredDatabase(self._folder.database, self._metrics, failpoints=failpoints)
                opened.callback(self._database.close)
                self._wire(access)
            metrics_address = self._metrics.serve(settings.metrics_address)
            self.addresses = Addresses(self._grpc.address, metrics_address)
            opened.pop_all()
        self._metrics.watch(self._live_sources())

    def start(self) -> None:
        """Serves from now on; what the workers can do is found out meanwhile.

        Raises:
            PreconditionError: the database turns out to be damaged.
        """
        if self._sandbox is None:
            _log.warning(
                "--insecure-no-sandbox: workers are separate processes with limits, and nothing more; a TorchScript archive is"
                " a program. Serve only models that you trust"
            )
        else:
            _log.info("workers run inside the sandbox (Landlock ABI %d, seccomp)", self._sandbox.landlock_abi)
        self._probe.start()
        with self._folder.faults_explained():
            self._scheduler.start()
        self._grpc.start()

    def stop(self) -> bool:
        """Takes no new jobs, lets running ones go on for a while, queues again those that do not end, and stops.

        Returns:
            whether every call has ended; if not, the process must be ended at once, as the disk is left to it.
        """
        self._draining = True
        self._grpc.stop_welcoming()
        self._jobs.drain()
        self._scheduler.stop(self._settings.drain_timeout_seconds)
        ended = self._grpc.stop(CALL_GRACE_SECONDS)
        self._probe.stop()
        self._metrics.close()
        if ended:
            self._database.close()
            self._folder.close()
        return ended

    def _wire(self, access: AccessFiles) -> None:
        settings, clock, broker = self._settings, SystemClock(), ChangeBroker()
        self._store = SqliteJobStore(self._database, clock, settings.retention_seconds, on_change=broker.notify)
        artifacts = LocalArtifactStore(
            self._database,
            self._folder.artifacts,
            clock,
            settings.retention_seconds,
            settings.upload_retention_seconds,
            settings.max_artifact_bytes,
            max_bytes_per_owner=settings.max_bytes_per_principal,
            failpoints=self._failpoints,
        )
        is_sandboxed = self._sandbox is not None
        gate = GateProcess(clock=clock, deadline_seconds=settings.gate_timeout_seconds, is_sandboxed=is_sandboxed)
        self._probe = WorkerProbe(clock=clock)
        self._scheduler = Scheduler(
            store=self._store,
            artifacts=artifacts,
            executor=LocalExecutor(
                root=self._folder.runs,
                gate=gate,
                artifacts=artifacts,
                clock=clock,
                limits=_executor_limits(settings),
                service_version=__version__,
                containment=Containment(is_sandboxed, delegated()),
                failpoints=self._failpoints,
            ),
            probe=self._probe,
            metrics=self._metrics,
            clock=clock,
            options=SchedulerOptions(
                cpu_slots=settings.cpu_slots,
                cuda_slots_per_device=settings.cuda_slots_per_device,
                max_running_per_owner=settings.max_running_per_principal,
            ),
        )
        uris = _uri_resolver(settings, artifacts, self._metrics)
        self._jobs = JobService(
            store=self._store,
            artifacts=artifacts,
            gate=gate,
            probe=self._probe,
            runs=self._scheduler,
            broker=broker,
            metrics=self._metrics,
            clock=clock,
            limits=_job_limits(settings),
            uris=uris,
        )
        # After the executor, which empties the folder of what a dead server left.
        inspector = LocalInspector(
            root=self._folder.runs / "inspections",
            gate=gate,
            artifacts=artifacts,
            clock=clock,
            limits=_inspection_limits(settings),
            is_sandboxed=is_sandboxed,
        )
        inspections = InspectionService(artifacts, inspector, uris)
        parts = Parts(self._jobs, inspections, artifacts, self._metrics, self._metrics, clock, _facts(settings))
        limits = CallLimits(watches=settings.max_watches, transfers=settings.max_transfers)
        self._grpc = GrpcServer(
            parts,
            settings.address,
            tls=None if access.tls is None else access.tls.current,
            limits=limits,
            access=Access(access.tokens, settings.tls_client_ca is not None, settings.requests_per_second),
        )
        if not (is_loopback(settings.address) or access.tokens or settings.tls_client_ca):
            _log.warning(
                "whoever reaches %s may submit programs and read every result: give --token-file or --tls-client-ca",
                settings.address,
            )

    def _live_sources(self) -> LiveSources:
        database, artifacts = self._folder.database, self._folder.artifacts
        storage = StorageUsage(
            {
                "artifacts": (artifacts / "blobs",),
                "uploads": (artifacts / "uploads",),
                "jobs": (self._folder.runs,),
                "database": tuple(database.with_name(database.name + suffix) for suffix in ("", "-wal", "-shm")),
            },
            self._folder.root,
        )
        return LiveSources(
            build=self._build,
            jobs_by_state=self._store.counts_by_state,
            oldest_queued_time=self._store.oldest_queued_time,
            queue_capacity_jobs=lambda: self._settings.queue_capacity,
            workers=self._scheduler.workers,
            heartbeat_age_seconds=self._scheduler.heartbeat_age_seconds,
            device_usage=self._scheduler.device_usage,
            device_memory_bytes=self._device_memory_bytes,
            storage_bytes=storage.bytes_by_kind,
            storage_free_bytes=storage.free_bytes,
            landlock_abi=lambda: 0 if self._sandbox is None else self._sandbox.landlock_abi,
            ready=lambda: not self._draining and self._answer() is not None,
            draining=lambda: self._draining,
        )

    def _answer(self) -> Probe | None:
        """What the workers can do, if it is known by now."""
        try:
            return self._probe.get(0.0)
        except UnavailableError:
            return None

    def _build(self) -> BuildInfo:
        probe = self._answer()
        if probe is None:
            return BuildInfo(version=__version__, python=platform.python_version())
        return BuildInfo(
            version=__version__,
            python=platform.python_version(),
            torch=probe.torch_version,
            cuda=probe.cuda_version or "",
        )

    def _device_memory_bytes(self) -> dict[str, int]:
        probe = self._answer()
        return {} if probe is None else {device.name: device.memory_bytes for device in probe.devices}


@dataclass(frozen=True)
class AccessFiles:
    """The files that say who may call; each may be replaced while the server runs."""

    tls: WatchedFiles[TlsFiles] | None
    tokens: TokenFile | None

    @classmethod
    def read(cls, settings: Settings) -> AccessFiles:
        """Reads the files that the settings name.

        Raises:
            InvalidRequestError: one cannot be read, is not what it should be, or does not fit another.
        """
        clock = SystemClock()
        certificate, key = settings.tls_cert, settings.tls_key
        return cls(
            tls=watch_tls(certificate, key, settings.tls_client_ca, clock) if certificate and key else None,
            tokens=None if settings.token_file is None else TokenFile(settings.token_file, clock),
        )


def _uri_resolver(settings: Settings, artifacts: LocalArtifactStore, metrics: PrometheusMetrics) -> UriResolver:
    if not settings.allow_uri:
        return UriResolver(NoUris(), 1)
    policy = UriPolicy(settings.allow_uri, settings.allow_uri_network)
    fetcher = UriFetcher(artifacts, metrics, policy, deadline_seconds=settings.uri_timeout_seconds)
    return UriResolver(fetcher, MAX_FETCHES)


def _executor_limits(settings: Settings) -> ExecutorLimits:
    return ExecutorLimits(
        memory_bytes=settings.memory_per_job_bytes,
        job_timeout_seconds=settings.job_timeout_seconds,
        load_timeout_seconds=settings.load_timeout_seconds,
        observe_timeout_seconds=settings.observe_timeout_seconds,
        threads=settings.threads_per_job,
    )


def _inspection_limits(settings: Settings) -> InspectionLimits:
    return InspectionLimits(
        memory_bytes=settings.memory_per_job_bytes,
        deadline_seconds=settings.load_timeout_seconds + settings.observe_timeout_seconds,
        concurrency=max(1, min(MAX_INSPECTIONS, settings.cpu_slots)),
        threads=settings.threads_per_job,
    )


def _job_limits(settings: Settings) -> JobLimits:
    standard = JobLimits()
    return JobLimits(
        queue_capacity=settings.queue_capacity,
        max_attempts=settings.max_attempts,
        max_attempts_allowed=max(settings.max_attempts, standard.max_attempts_allowed),
        memory_bytes=settings.memory_per_job_bytes,
        max_queued_per_owner=settings.max_queued_per_principal,
    )


def _facts(settings: Settings) -> ServerFacts:
    return ServerFacts(
        version=__version__,
        max_artifact_bytes=settings.max_artifact_bytes,
        queue_capacity_jobs=settings.queue_capacity,
        max_attempts=settings.max_attempts,
        retention_seconds=settings.retention_seconds,
        default_timeout_seconds=settings.job_timeout_seconds,
        cpu_slots=settings.cpu_slots,
        cuda_slots_per_device=settings.cuda_slots_per_device,
        sandboxed=not settings.insecure_no_sandbox,
        heartbeat_seconds=HEARTBEAT_SECONDS,
    )
