"""The jobs room with real parts: SQLite, files, processes; only the worker is a stand-in, and the gate copies."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import standin_worker
from pruning_server.adapters.artifact_store import LocalArtifactStore
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.database import Database
from pruning_server.adapters.executor import ExecutorLimits, LocalExecutor
from pruning_server.adapters.job_store import SqliteJobStore
from pruning_server.adapters.process import python_command
from pruning_server.jobs.broker import ChangeBroker
from pruning_server.jobs.events import WorkerMessage
from pruning_server.jobs.model import Job
from pruning_server.jobs.ports import CancelToken, Executor
from pruning_server.jobs.probe import Probe
from pruning_server.jobs.scheduler import Scheduler, SchedulerOptions
from pruning_server.spec.artifacts import ArtifactKind, DatasetSummary, ModelSummary, Summary, TensorSummary
from pruning_server.spec.phases import Phase
from pruning_server.spec.request import ArtifactRef, PruningSpec, StaticStrategy, Target, TargetKind

STANDIN_COMMAND = python_command(str(Path(standin_worker.__file__)))
OWNER = "somebody"
MEMORY_BYTES = 2 * 2**30

MODEL_SUMMARY = ModelSummary(
    format_version=6, root="model", methods=("forward",), tensor_bytes=1, code_bytes=1, size_bytes=1
)
DATASET_SUMMARY = DatasetSummary(
    container="npz",
    samples=100,
    inputs=(TensorSummary(name="inputs", dtype="float32", shape=(100, 8)),),
    targets=TensorSummary(name="targets", dtype="int64", shape=(100,)),
    has_split=False,
    has_groups=False,
    size_bytes=1,
)


class CopyGate:
    """Accepts every file and copies it; `before_repack` sees each call first and may raise."""

    def __init__(self) -> None:
        self.checks = 0
        self.dataset = DATASET_SUMMARY
        self.before_repack: Callable[[ArtifactKind, Path], None] = lambda _kind, _source: None
        self.before_check: Callable[[ArtifactKind, Path], None] = lambda _kind, _source: None

    def check(self, kind: ArtifactKind, source: Path) -> Summary:
        self.checks += 1
        self.before_check(kind, source)
        return self._summary(kind)

    def repack(
        self,
        kind: ArtifactKind,
        source: Path,
        destination: Path,
        *,
        cancelled: CancelToken | None = None,  # noqa: ARG002 - the port's
    ) -> Summary:
        self.before_repack(kind, source)
        shutil.copyfile(source, destination)
        return self._summary(kind)

    def _summary(self, kind: ArtifactKind) -> Summary:
        return self.dataset if kind is ArtifactKind.DATASET else MODEL_SUMMARY


class FixedProbe:
    """A probe that has answered."""

    def __init__(self, probe: Probe = standin_worker.PROBE) -> None:
        self.answer = probe

    def get(self, timeout_seconds: float) -> Probe:
        assert timeout_seconds >= 0
        return self.answer


class RecordingMetrics:
    """Remembers every call as (name, arguments)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)

        def record(*arguments: object) -> None:
            with self._lock:
                self.calls.append((name, arguments))

        return record

    def of(self, name: str) -> list[tuple[Any, ...]]:
        with self._lock:
            return [arguments for called, arguments in self.calls if called == name]

    @contextmanager
    def transfer(self, direction: str, transport: str = "grpc") -> Iterator[Callable[[int], None]]:
        yield lambda count: self.calls.append((direction, (count, transport) if transport != "grpc" else (count,)))

    def phases(self) -> list[Phase]:
        return [phase for phase, _ in self.of("phase_finished")]


@dataclass
class World:
    """Everything over one data folder; `close` it at the end."""

    folder: Path
    limits: ExecutorLimits = field(default_factory=lambda: ExecutorLimits(memory_bytes=MEMORY_BYTES))
    worker_command: tuple[str, ...] = STANDIN_COMMAND
    retention_seconds: float = 3600.0

    def __post_init__(self) -> None:
        self.clock = SystemClock()
        self.broker = ChangeBroker()
        self.metrics = RecordingMetrics()
        self.gate = CopyGate()
        self.probe = FixedProbe()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.database = Database(self.folder / "jobs.sqlite3")
        self.store = SqliteJobStore(self.database, self.clock, self.retention_seconds, on_change=self.broker.notify)
        self.artifacts = LocalArtifactStore(
            self.database, self.folder / "artifacts", self.clock, self.retention_seconds, 3600.0, 2**30
        )
        self._counter = 0

    @property
    def runs(self) -> Path:
        return self.folder / "jobs"

    def executor(self) -> LocalExecutor:
        return LocalExecutor(
            root=self.runs,
            gate=self.gate,
            artifacts=self.artifacts,
            clock=self.clock,
            limits=self.limits,
            service_version="0.test",
            worker_command=self.worker_command,
        )

    def scheduler(self, executor: Executor | None = None, **options: Any) -> Scheduler:
        return Scheduler(
            store=self.store,
            artifacts=self.artifacts,
            executor=executor or self.executor(),
            probe=self.probe,
            metrics=self.metrics,
            clock=self.clock,
            options=SchedulerOptions(**{"cpu_slots": 2, **options}),
        )

    def upload(self, content: bytes, kind: ArtifactKind = ArtifactKind.TORCHSCRIPT) -> ArtifactRef:
        sha256 = hashlib.sha256(content).hexdigest()
        artifact = self.artifacts.create(OWNER, kind, sha256, len(content), "file")
        if not artifact.active:
            with self.artifacts.open_upload(OWNER, artifact.artifact_id) as upload:
                upload.write(0, content)
                upload.finish()
        return ArtifactRef(artifact_id=artifact.artifact_id)

    def spec(self, *behaviours: str, **fields: Any) -> PruningSpec:
        """A request whose worker does what `behaviours` name; see standin_worker."""
        return PruningSpec(
            **{
                "model": self.upload(b"a model"),
                "validation": self.upload(b"a dataset", ArtifactKind.DATASET),
                "strategy": StaticStrategy(),
                "target": Target(kind=TargetKind.SPARSITY, value=0.5),
                "exclude_layers": behaviours,
                "device": "cpu",
                **fields,
            }
        )

    def submit(self, *behaviours: str, max_attempts: int = 3, device: str = "cpu", **fields: Any) -> Job:
        """Queues a job past all checks."""
        self._counter += 1
        job, _ = self.store.create(
            owner=OWNER,
            request_id=f"request-{self._counter}",
            spec=self.spec(*behaviours, **fields),
            labels={},
            device=device,
            max_attempts=max_attempts,
            queue_capacity=1000,
        )
        return job

    def get(self, job: Job) -> Job:
        return self.store.get(None, job.job_id)

    def claimed(self, *behaviours: str, **fields: Any) -> Job:
        """A job that runs, for an executor without a scheduler."""
        self.submit(*behaviours, **fields)
        claim = self.store.claim(["cpu"], "test")
        assert claim is not None
        return claim[0]

    def run(self, job: Job, cancelled: CancelToken | None = None) -> tuple[Any, list[WorkerMessage]]:
        """Runs a claimed job; returns (outcome, messages)."""
        messages: list[WorkerMessage] = []
        outcome = self.executor().run(job, "cpu", messages.append, cancelled or threading.Event())
        return outcome, messages

    def close(self) -> None:
        self.database.close()
