"""The parts of a running server and how they hang together; started and stopped by `__main__`."""

from __future__ import annotations

import logging
import platform
import ssl
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pruning_server import __version__
from pruning_server.adapters.artifact_store import LocalArtifactStore
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.data_folder import DataFolder
from pruning_server.adapters.executor import ExecutorLimits, LocalExecutor
from pruning_server.adapters.gate import GateProcess
from pruning_server.adapters.inspector import InspectionLimits, LocalInspector
from pruning_server.adapters.job_store import SqliteJobStore
from pruning_server.adapters.metrics import BuildInfo, LiveSources, MeasuredDatabase, PrometheusMetrics, StorageUsage
from pruning_server.adapters.probe import WorkerProbe
from pruning_server.errors import InvalidRequestError, UnavailableError
from pruning_server.jobs.broker import ChangeBroker
from pruning_server.jobs.inspection import InspectionService
from pruning_server.jobs.probe import Probe
from pruning_server.jobs.scheduler import Scheduler, SchedulerOptions
from pruning_server.jobs.service import JobLimits, JobService
from pruning_server.service.jobs import ServerFacts
from pruning_server.service.server import CallLimits, GrpcServer, Parts, TlsFiles
from pruning_server.settings import Settings

HEARTBEAT_SECONDS = 15.0
# For calls that are being answered when the server stops; watches are ended before.
CALL_GRACE_SECONDS = 3.0
# Processes that inspect models come on top of those of jobs, and each may take as much memory as a job.
MAX_INSPECTIONS = 2
# No sandbox exists in this version; the flag that accepts that is taken, so that scripts need not change later.
SANDBOXED = False

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addresses:
    """What was bound."""

    address: str
    metrics_address: str


class Server:
    """A whole server on one data folder.

    Raises:
        PreconditionError: the data folder is in use, not ours, or cannot be read and written.
        InvalidRequestError: an address is taken, or the TLS files do not fit.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._draining = False
        tls = read_tls(settings)
        # Undoes what was opened if a later step fails; kept for `stop` if none does.
        with ExitStack() as opened:
            self._folder = DataFolder(settings.data_dir)
            opened.callback(self._folder.close)
            self._metrics = PrometheusMetrics()
            opened.callback(self._metrics.close)
            with self._folder.faults_explained():
                self._database = MeasuredDatabase(self._folder.database, self._metrics)
                opened.callback(self._database.close)
                self._wire(tls)
            metrics_address = self._metrics.serve(settings.metrics_address)
            self.addresses = Addresses(self._grpc.address, metrics_address)
            opened.pop_all()
        self._metrics.watch(self._live_sources())

    def start(self) -> None:
        """Serves from now on; what the workers can do is found out meanwhile.

        Raises:
            PreconditionError: the database turns out to be damaged.
        """
        if not (SANDBOXED or self._settings.insecure_no_sandbox):
            _log.warning(
                "this version has no kernel sandbox: workers are separate processes with limits, and a TorchScript archive"
                " is a program. Serve only models that you trust (--insecure-no-sandbox accepts this)"
            )
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

    def _wire(self, tls: TlsFiles | None) -> None:
        settings, clock, broker = self._settings, SystemClock(), ChangeBroker()
        self._store = SqliteJobStore(self._database, clock, settings.retention_seconds, on_change=broker.notify)
        artifacts = LocalArtifactStore(
            self._database,
            self._folder.artifacts,
            clock,
            settings.retention_seconds,
            settings.upload_retention_seconds,
            settings.max_artifact_bytes,
        )
        gate = GateProcess(clock=clock, deadline_seconds=settings.gate_timeout_seconds)
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
            ),
            probe=self._probe,
            metrics=self._metrics,
            clock=clock,
            options=SchedulerOptions(
                cpu_slots=settings.cpu_slots, cuda_slots_per_device=settings.cuda_slots_per_device
            ),
        )
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
        )
        # After the executor, which empties the folder of what a dead server left.
        inspector = LocalInspector(
            root=self._folder.runs / "inspections",
            gate=gate,
            artifacts=artifacts,
            clock=clock,
            limits=_inspection_limits(settings),
        )
        inspections = InspectionService(artifacts, inspector)
        parts = Parts(self._jobs, inspections, artifacts, self._metrics, self._metrics, clock, _facts(settings))
        limits = CallLimits(watches=settings.max_watches, transfers=settings.max_transfers)
        self._grpc = GrpcServer(parts, settings.address, tls=tls, limits=limits)

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


def read_tls(settings: Settings) -> TlsFiles | None:
    """Returns the contents of the TLS files; None where none are given.

    Raises:
        InvalidRequestError: they cannot be read, are no PEM files, or key and certificate do not belong together.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        # grpc itself only logs that something is wrong, and then refuses every client.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidRequestError.for_field(
            "--tls-cert",
            f"{settings.tls_cert} and {settings.tls_key} are not a PEM certificate and its key, without a password"
            f" ({error})",
        ) from error
    return TlsFiles(
        settings.tls_cert.read_bytes(), settings.tls_key.read_bytes(), _read_client_ca(context, settings.tls_client_ca)
    )


def _no_password() -> str:
    """Instead of asking on the terminal."""
    return ""


def _read_client_ca(context: ssl.SSLContext, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise InvalidRequestError.for_field("--tls-client-ca", f"{path} holds no PEM certificates ({error})") from error
    return path.read_bytes()


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
        sandboxed=SANDBOXED,
        heartbeat_seconds=HEARTBEAT_SECONDS,
    )
