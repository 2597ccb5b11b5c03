"""Stores for tests: every implementation of the ports that the contract suites hold, on a clock that tests move."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pruning_server.adapters.artifact_store import LocalArtifactStore
from pruning_server.adapters.database import Database
from pruning_server.adapters.failpoints import no_failpoints
from pruning_server.adapters.job_store import SqliteJobStore
from pruning_server.errors import Reason
from pruning_server.jobs.events import Event, StateEvent
from pruning_server.jobs.model import Failure, Job, JobState, Result
from pruning_server.jobs.ports import Artifact, ArtifactStore, JobStore
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.request import ArtifactRef, PruningSpec, StaticStrategy, Target, TargetKind, Verdict

OWNER = "owner-a"
STRANGER = "owner-b"
DAY_SECONDS = 86_400.0
RETENTION_SECONDS = 7 * DAY_SECONDS
UPLOAD_RETENTION_SECONDS = DAY_SECONDS
MAX_ARTIFACT_BYTES = 2**30
START_TIME = 1_700_000_000.0
MODEL_ID, VALIDATION_ID = "a" * 32, "b" * 32

FAILURE = Failure(reason=Reason.WORKER_SIGNAL, message="The worker was ended by SIGSEGV.")
RESULT = Result(model_artifact_id="c" * 32, report_artifact_id="d" * 32, verdict=Verdict.PASS, sparsity=0.8)


@dataclass
class ManualClock:
    """A clock that stands still until a test moves it."""

    time: float = START_TIME

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


@dataclass(frozen=True)
class OpenStores:
    """Both stores on one folder, as a server has them, and what was announced through `on_change`."""

    jobs: JobStore
    artifacts: ArtifactStore
    clock: ManualClock
    close: Callable[[], None]
    announced: list[str] = field(default_factory=list)

    def submit(self, request_id: str = "r", **changes: object) -> Job:
        job, created = create_job(self.jobs, request_id, **changes)
        assert created
        return job

    def run(self, request_id: str = "r", **changes: object) -> Job:
        """A job that runs: the only one that is queued."""
        submitted = self.submit(request_id, **changes)
        claimed = self.jobs.claim(("cpu", "cuda:0"), "server-1")
        assert claimed is not None
        assert claimed[0].job_id == submitted.job_id
        return claimed[0]

    def events(self, job_id: str) -> Sequence[Event]:
        return self.jobs.events_after(job_id, 0, 100_000)

    def states(self, job_id: str) -> list[JobState]:
        return [event.payload.state for event in self.events(job_id) if isinstance(event.payload, StateEvent)]


def open_sqlite(folder: Path, clock: ManualClock, **options: object) -> OpenStores:
    """The embedded default. `options` go to the artifact store, `failpoints` to the database as well."""
    reach = options.get("failpoints", no_failpoints)
    database = Database(folder / "server.db", failpoints=reach)  # type: ignore[arg-type]
    announced: list[str] = []
    jobs = SqliteJobStore(database, clock, RETENTION_SECONDS, on_change=announced.append)
    artifacts = LocalArtifactStore(
        database,
        folder / "artifacts",
        clock,
        RETENTION_SECONDS,
        UPLOAD_RETENTION_SECONDS,
        MAX_ARTIFACT_BYTES,
        **({"min_free_bytes": 0} | options),  # type: ignore[arg-type]
    )
    return OpenStores(jobs, artifacts, clock, database.close, announced)


# Another implementation of the ports joins the contract suites by a line here.
FILLINGS: dict[str, Callable[[Path, ManualClock], OpenStores]] = {"sqlite": open_sqlite}


def spec_for(model_id: str = MODEL_ID, validation_id: str = VALIDATION_ID, sparsity: float = 0.8) -> PruningSpec:
    return PruningSpec(
        model=ArtifactRef(artifact_id=model_id),
        validation=ArtifactRef(artifact_id=validation_id),
        strategy=StaticStrategy(),
        target=Target(kind=TargetKind.SPARSITY, value=sparsity),
    )


def create_job(store: JobStore, request_id: str = "r", **changes: object) -> tuple[Job, bool]:
    arguments: dict[str, object] = {
        "owner": OWNER,
        "request_id": request_id,
        "spec": spec_for(),
        "labels": {},
        "device": "cpu",
        "max_attempts": 3,
        "queue_capacity": 1000,
    }
    return store.create(**(arguments | changes))  # type: ignore[arg-type]


def random_bytes(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def announce(
    store: ArtifactStore, content: bytes, kind: ArtifactKind = ArtifactKind.DATASET, owner: str = OWNER
) -> Artifact:
    return store.create(owner, kind, sha256_of(content), len(content), "data.npz")


def upload(
    store: ArtifactStore, content: bytes, kind: ArtifactKind = ArtifactKind.DATASET, owner: str = OWNER
) -> Artifact:
    artifact = announce(store, content, kind, owner)
    with store.open_upload(owner, artifact.artifact_id) as writer:
        writer.write(artifact.committed_size_bytes, content[artifact.committed_size_bytes :])
        return writer.finish()


def read(store: ArtifactStore, artifact_id: str, owner: str = OWNER) -> bytes:
    with store.open_read(owner, artifact_id) as file:
        return file.read()
