"""A disk that is full or broken, at every write of both stores: an error that says so, nothing half done, and on it goes."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.failpoints import ACTIONS
from helpers.stores import OWNER, RESULT, ManualClock, OpenStores, announce, create_job, open_sqlite, random_bytes, read
from pruning_server.errors import CapacityError, Reason
from pruning_server.jobs.events import LogEvent, Severity, StateEvent
from pruning_server.jobs.model import JobState
from pruning_server.spec.artifacts import ArtifactKind

CONTENT = random_bytes(5, 40_000)


class FailsOnce:
    """Fails the `visit`-th time that something is about to be written, and never again."""

    def __init__(self, action: str) -> None:
        self._action = action
        self._left = 0

    def arm(self, visit: int) -> None:
        self._left = visit

    @property
    def has_failed(self) -> bool:
        return self._left == 0

    def __call__(self, name: str) -> None:
        # What was committed or renamed cannot fail any more.
        if name.endswith(".after") or self._left == 0:
            return
        self._left -= 1
        if self._left == 0:
            ACTIONS[self._action](name, "")


def send(stores: OpenStores, _folder: Path) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        for offset in range(artifact.committed_size_bytes, len(CONTENT), 15_000):
            writer.write(offset, CONTENT[offset : offset + 15_000])
        artifact = writer.finish()
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


def keep_result(stores: OpenStores, folder: Path) -> None:
    (folder / "result").write_bytes(CONTENT)
    artifact = stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, folder / "result", "")
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


def submit(stores: OpenStores, _folder: Path) -> None:
    job, _ = create_job(stores.jobs, "same")
    assert stores.jobs.find_request(OWNER, "same") == job


def run(stores: OpenStores, folder: Path) -> None:
    submit(stores, folder)
    job = stores.jobs.find_request(OWNER, "same")
    assert job is not None
    if job.state is JobState.QUEUED:
        stores.jobs.claim(("cpu",), "server")
    stores.jobs.append_event(job.job_id, 1, LogEvent(severity=Severity.INFO, message="line"))
    assert stores.jobs.succeed(job.job_id, 1, RESULT).state is JobState.SUCCEEDED


def cancel(stores: OpenStores, folder: Path) -> None:
    submit(stores, folder)
    job = stores.jobs.find_request(OWNER, "same")
    assert job is not None
    assert stores.jobs.request_cancel(OWNER, job.job_id).state is JobState.CANCELLED


def send_and_delete(stores: OpenStores, folder: Path) -> None:
    send(stores, folder)
    stores.artifacts.delete(OWNER, announce(stores.artifacts, CONTENT).artifact_id)


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a folder: what is tested opens hundreds of databases."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


OPERATIONS: tuple[Callable[[OpenStores, Path], None], ...] = (send, keep_result, submit, run, cancel, send_and_delete)


@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disk_that_fails_at_any_write_costs_no_more_than_one_call(
    quick_disk: Path, operation: Callable[[OpenStores, Path], None], action: str
) -> None:
    for visit in range(1, 50):
        folder = quick_disk / str(visit)
        folder.mkdir()
        disk = FailsOnce(action)
        stores = open_sqlite(
            folder, ManualClock(), failpoints=disk, sync_every_bytes=10_000, orphan_grace_seconds=-1e12
        )
        disk.arm(visit)
        try:
            operation(stores, folder)
        except (CapacityError, OSError, sqlite3.OperationalError) as error:
            raised = error
            assert disk.has_failed
            assert isinstance(raised, CapacityError) == (action == "enospc")
            assert getattr(raised, "reason", Reason.STORAGE_FULL) is Reason.STORAGE_FULL
            check(stores)
            # The same call again, as a client makes it.
            operation(stores, folder)
        else:
            if not disk.has_failed:
                stores.close()
                assert visit > 1
                return
        check(stores)
        stores.close()
        reopened = open_sqlite(folder, ManualClock(), orphan_grace_seconds=-1e12)
        check(reopened)
        reopened.close()
    raise AssertionError("the operation never came through")


def check(stores: OpenStores) -> None:
    """Jobs end once and are numbered without gaps; files and rows agree after a collection."""
    jobs, _ = stores.jobs.list(OWNER, frozenset(), {}, 100, "")
    assert len(jobs) <= 1
    for job in jobs:
        events = stores.events(job.job_id)
        assert [event.sequence for event in events] == list(range(1, job.last_sequence + 1))
        states = [event.payload.state for event in events if isinstance(event.payload, StateEvent)]
        assert states[-1] is job.state
        assert sum(state.is_terminal for state in states) <= 1
    stores.artifacts.collect_garbage()
    artifacts, _ = stores.artifacts.list(OWNER, None, 100, "")
    for artifact in artifacts:
        if artifact.active:
            assert read(stores.artifacts, artifact.artifact_id) == CONTENT


FILLING = """
import resource, sys
from pathlib import Path
from helpers.stores import ManualClock, create_job, open_sqlite
stores = open_sqlite(Path(sys.argv[1]), ManualClock())
create_job(stores.jobs, "before")
# No file may grow from here on: SQLite meets it in the middle of a commit.
size = (Path(sys.argv[1]) / "server.db-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
try:
    create_job(stores.jobs, "during")
    print("came through")
except Exception as error:
    print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
create_job(stores.jobs, "after")
print(*sorted(job.request_id for job in stores.jobs.list(None, frozenset(), {}, 10, "")[0]))
"""


def test_a_log_of_the_database_that_cannot_grow_loses_one_call(tmp_path: Path) -> None:
    answer = in_a_process(FILLING, str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == ["OperationalError", "after", "before"]
    stores = open_sqlite(tmp_path, ManualClock())
    assert {job.request_id for job in stores.jobs.list(None, frozenset(), {}, 10, "")[0]} == {"before", "after"}
    stores.close()


WITHOUT_OVERRIDE = """
import ctypes, os, sys
# A root that permissions hold for, like anybody else: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are dropped.
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("what", ["jobs.sqlite3", "."])
def test_a_database_that_may_only_be_read_is_refused_at_start(tmp_path: Path, what: str) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    start = ("-m", "pruning_server", "--insecure-no-sandbox", "--address", "127.0.0.1:0")
    stores = open_sqlite(data_dir, ManualClock())
    stores.close()
    (data_dir / "server.db").rename(data_dir / "jobs.sqlite3")
    for name in ("lock", "jobs"):
        (data_dir / name).mkdir() if name == "jobs" else (data_dir / name).touch()
    (data_dir / what).chmod(0o500)
    answer = in_a_process(WITHOUT_OVERRIDE, *start, "--data-dir", str(data_dir))
    (data_dir / what).chmod(0o700)
    assert answer.returncode == 2
    assert str(data_dir) in answer.stderr
    assert "right to write" in answer.stderr
    assert "Traceback" not in answer.stderr
    reopened = open_sqlite(tmp_path, ManualClock())
    reopened.close()


def in_a_process(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRUNING_")}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_store_that_cannot_settle_an_artifact_at_start_starts_all_the_same(tmp_path: Path) -> None:
    disk = FailsOnce("eio")
    stores = open_sqlite(tmp_path, ManualClock(), failpoints=disk)
    artifact = announce(stores.artifacts, CONTENT)

    def finish() -> None:
        with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
            writer.write(0, CONTENT)
            # The sync, the row's commit, the rename.
            disk.arm(3)
            writer.finish()

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        finish()
    stores.close()
    # The schema's commit, and the rename again.
    disk.arm(2)
    stores = open_sqlite(tmp_path, ManualClock(), failpoints=disk)
    assert disk.has_failed
    stores.close()
    stores = open_sqlite(tmp_path, ManualClock())
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT
    stores.close()
