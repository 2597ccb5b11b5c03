"""kill -9 in the middle of the work, again and again: what was promised before is there after."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

from helpers import store_hammer
from helpers.stores import OWNER, random_bytes, read
from pruning_server.adapters.database import Database
from pruning_server.errors import NotFoundError
from pruning_server.jobs.events import StateEvent
from pruning_server.jobs.model import TRANSITIONS, JobState
from pruning_server.jobs.ports import ArtifactStore, JobStore

ROUNDS = 8
TESTS = Path(__file__).parents[1]


def hammer_and_kill(folder: Path, seed: int) -> list[dict[str, object]]:
    """Runs the hammer, kills it at a random moment after it is at work, and returns what it had promised."""
    rng = random.Random(seed)
    process = subprocess.Popen(
        [sys.executable, "-m", "helpers.store_hammer", str(folder), str(seed)],
        env={"PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    guard = threading.Timer(30, process.kill)
    guard.start()
    # Counted in promises and not in seconds, so that slow machines do as much work.
    lines = list(itertools.islice(process.stdout, rng.randrange(100, 600)))
    process.kill()
    lines += process.stdout.readlines()
    errors = process.stderr.read()
    process.wait(timeout=30)
    guard.cancel()
    process.stdout.close()
    process.stderr.close()
    assert errors == b"", errors.decode()
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def check_jobs(jobs: JobStore, promises: list[dict[str, object]], *, recovered: bool) -> None:
    found, token = {}, ""
    while True:
        page, token = jobs.list(OWNER, frozenset(), {}, 1000, token)
        found |= {job.job_id: job for job in page}
        if not token:
            break
    submitted = {str(p["job"]): str(p["request"]) for p in promises if p["what"] == "submitted"}
    assert submitted.keys() <= found.keys(), "a job was lost"
    for job_id, request_id in submitted.items():
        assert jobs.find_request(OWNER, request_id) == found[job_id]
    ended: dict[str, set[object]] = defaultdict(set)
    for p in promises:
        if p["what"] == "ended" or (p["what"] == "cancel" and JobState(str(p["state"])).is_terminal):
            ended[str(p["job"])].add(p["state"])
    for job_id, states in ended.items():
        assert states == {found[job_id].state}, "a terminal state changed"
    newest = {str(p["job"]): int(str(p["sequence"])) for p in promises if p["what"] == "event"}
    for job_id, job in found.items():
        events = jobs.events_after(job_id, 0, 10_000)
        assert [event.sequence for event in events] == list(range(1, job.last_sequence + 1))
        assert job.last_sequence >= newest.get(job_id, 0), "an event was lost"
        entered = [event.payload.state for event in events if isinstance(event.payload, StateEvent)]
        assert entered[0] is JobState.QUEUED
        assert entered[-1] is job.state
        assert all(after in TRANSITIONS[before] for before, after in itertools.pairwise(entered))
        assert entered.count(JobState.RUNNING) == job.attempt <= job.max_attempts
        if recovered:
            assert job.state not in {JobState.RUNNING, JobState.CANCELLING}


def check_artifacts(artifacts: ArtifactStore, promises: list[dict[str, object]]) -> None:
    deleting = {p["artifact"] for p in promises if p["what"] == "deleting"}
    kept = {str(p["artifact"]): int(str(p["size"])) for p in promises if p["what"] == "kept"}
    for p in promises:
        if p["what"] != "stored":
            continue
        content = random_bytes(int(str(p["seed"])), 1000 + int(str(p["seed"])) % 90_000)
        try:
            assert read(artifacts, str(p["artifact"])) == content
        except NotFoundError:
            assert p["artifact"] in deleting, "a file was lost"
    for artifact_id, size_bytes in kept.items():
        if artifact_id not in deleting:
            assert artifacts.get(OWNER, artifact_id).committed_size_bytes >= size_bytes, "bytes were lost"


def check_folder(folder: Path, database: Database) -> None:
    """Every file has its row, and every row its file."""
    with database.read() as connection:
        hashes = {row["sha256"] for row in connection.execute("SELECT sha256 FROM artifacts WHERE stage = 'ACTIVE'")}
        ids = {row["artifact_id"] for row in connection.execute("SELECT artifact_id FROM artifacts")}
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert connection.execute("SELECT count(*) FROM artifacts WHERE stage = 'VERIFIED'").fetchone()[0] == 0
    assert {path.name for path in (folder / "artifacts" / "blobs").rglob("*") if path.is_file()} == hashes
    assert {path.stem for path in (folder / "artifacts" / "uploads").iterdir()} <= ids


def test_nothing_that_was_promised_is_lost(tmp_path: Path) -> None:
    promises: list[dict[str, object]] = []
    for seed in range(ROUNDS):
        promises += hammer_and_kill(tmp_path, seed)
        database, jobs, artifacts = store_hammer.open_stores(tmp_path)
        check_jobs(jobs, promises, recovered=False)
        check_artifacts(artifacts, promises)
        database.close()
    # Everything counts as old now, so that what is left has a row that needs it.
    database, jobs, artifacts = store_hammer.open_stores(tmp_path, orphan_grace_seconds=-1e12)
    jobs.recover("the last server")
    check_jobs(jobs, promises, recovered=True)
    assert {"submitted", "ended", "event", "stored", "kept", "deleting", "cancel"} <= {p["what"] for p in promises}
    artifacts.collect_garbage()
    check_artifacts(artifacts, promises)
    check_folder(tmp_path, database)
    database.close()
