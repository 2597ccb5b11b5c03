"""A process that works both stores as hard as it can until it is killed; run as `python -m helpers.store_hammer`.

It prints one line of JSON after each call that came back: what was promised to a caller. The parent kills it, reads
the lines, and holds the stores to them.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import uuid
from pathlib import Path

from helpers.stores import (
    MAX_ARTIFACT_BYTES,
    OWNER,
    RESULT,
    RETENTION_SECONDS,
    UPLOAD_RETENTION_SECONDS,
    announce,
    create_job,
    random_bytes,
)
from pruning_server.adapters.artifact_store import LocalArtifactStore
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.database import Database
from pruning_server.adapters.job_store import SqliteJobStore
from pruning_server.errors import Reason
from pruning_server.jobs.events import LogEvent, Severity
from pruning_server.jobs.model import Failure
from pruning_server.jobs.ports import ArtifactStore, JobStore

FAILURE = Failure(reason=Reason.WORKER_SIGNAL, message="The worker died.")
MAX_ATTEMPTS = 2


def promise(what: str, **details: object) -> None:
    # One write of less than PIPE_BUF bytes: a line is there whole or not at all.
    os.write(1, (json.dumps({"what": what} | details) + "\n").encode())


def open_stores(folder: Path, **options: float) -> tuple[Database, JobStore, ArtifactStore]:
    database, clock = Database(folder / "server.db"), SystemClock()
    jobs = SqliteJobStore(database, clock, RETENTION_SECONDS)
    artifacts = LocalArtifactStore(
        database,
        folder / "artifacts",
        clock,
        RETENTION_SECONDS,
        UPLOAD_RETENTION_SECONDS,
        MAX_ARTIFACT_BYTES,
        min_free_bytes=0,
        sync_every_bytes=20_000,
        **options,  # type: ignore[arg-type]
    )
    return database, jobs, artifacts


def submit(jobs: JobStore, rng: random.Random) -> None:
    request_id = f"{rng.getrandbits(64):x}"
    job, _ = create_job(jobs, request_id, max_attempts=MAX_ATTEMPTS, queue_capacity=10**6)
    promise("submitted", job=job.job_id, request=request_id)
    if rng.random() < 0.2:
        state = jobs.request_cancel(OWNER, job.job_id).state
        promise("cancel", job=job.job_id, state=state)


def run(jobs: JobStore, rng: random.Random, lease_owner: str) -> None:
    claimed = jobs.claim(("cpu",), lease_owner)
    if claimed is None:
        return
    job = claimed[0]
    for number in range(rng.randrange(4)):
        event = jobs.append_event(job.job_id, job.attempt, LogEvent(severity=Severity.INFO, message=str(number)))
        if event is not None:
            promise("event", job=job.job_id, sequence=event.sequence)
    match rng.randrange(4):
        case 0 | 1:
            settled = jobs.succeed(job.job_id, job.attempt, RESULT)
        case 2:
            settled = jobs.fail(job.job_id, job.attempt, FAILURE, retry=True)
        case _:
            settled = jobs.fail(job.job_id, job.attempt, FAILURE, retry=False)
    if settled.state.is_terminal:
        promise("ended", job=job.job_id, state=settled.state)


def send(artifacts: ArtifactStore, rng: random.Random, folder: Path) -> None:
    seed = rng.randrange(10**9)
    content = random_bytes(seed, 1000 + seed % 90_000)
    if rng.random() < 0.3:
        source = folder / f"{uuid.uuid4().hex}.result"
        source.write_bytes(content)
        artifact = artifacts.put_file(OWNER, announce(artifacts, content).kind, source, "result")
    else:
        artifact = announce(artifacts, content)
        with artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
            for offset in range(artifact.committed_size_bytes, len(content), 15_000):
                writer.write(offset, content[offset : offset + 15_000])
                if rng.random() < 0.1:
                    promise("kept", artifact=artifact.artifact_id, size=writer.suspend().committed_size_bytes)
            artifact = writer.finish()
    promise("stored", artifact=artifact.artifact_id, seed=seed)
    if rng.random() < 0.2:
        # Promised before, since afterwards is too late to know that it was wanted.
        promise("deleting", artifact=artifact.artifact_id)
        artifacts.delete(OWNER, artifact.artifact_id)


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    _, jobs, artifacts = open_stores(folder)
    lease_owner = uuid.uuid4().hex
    for job in jobs.recover(lease_owner):
        if job.state.is_terminal:
            promise("ended", job=job.job_id, state=job.state)
    promise("ready")

    def forever(work: object, thread_seed: int) -> None:
        rng = random.Random(thread_seed)
        while True:
            work(rng)  # type: ignore[operator]

    for number, work in enumerate(
        (
            lambda rng: submit(jobs, rng),
            lambda rng: run(jobs, rng, lease_owner),
            lambda rng: run(jobs, rng, lease_owner),
            lambda rng: send(artifacts, rng, folder),
        )
    ):
        threading.Thread(target=forever, args=(work, seed * 10 + number)).start()


if __name__ == "__main__":
    main()
