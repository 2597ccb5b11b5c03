"""The local artifact store: what lies on disk, full disks, memory, and crashes at every step."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.stores import (
    OWNER,
    RETENTION_SECONDS,
    STRANGER,
    UPLOAD_RETENTION_SECONDS,
    ManualClock,
    OpenStores,
    announce,
    open_sqlite,
    random_bytes,
    read,
    sha256_of,
    upload,
)
from pruning_server.adapters import artifact_rows, blob_files
from pruning_server.adapters.blob_files import BlobFiles
from pruning_server.errors import CapacityError, ChecksumError, NotFoundError, OffsetError, Reason
from pruning_server.jobs.model import Result
from pruning_server.spec.artifacts import ArtifactKind, DatasetSummary
from pruning_server.spec.request import Verdict

CONTENT = random_bytes(7, 200_000)
SHA256 = sha256_of(CONTENT)
# Every file counts as old, so that garbage collection may touch whatever it could ever touch.
ANY_AGE = {"orphan_grace_seconds": -1e12}


class CrashError(BaseException):
    """The server dies here. Not an Exception, so that nothing can recover from it."""


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[OpenStores]:
    opened = open_sqlite(tmp_path, ManualClock())
    yield opened
    opened.close()


def files(folder: Path) -> dict[str, int]:
    root = folder / "artifacts"
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


BLOB = f"blobs/{SHA256[:2]}/{SHA256}"


# --- On disk ----------------------------------------------------------------------------------------------------------


def test_the_same_content_is_one_file_until_the_last_artifact_goes(stores: OpenStores, tmp_path: Path) -> None:
    artifacts = [
        (OWNER, upload(stores.artifacts, CONTENT)),
        (OWNER, announce(stores.artifacts, CONTENT, ArtifactKind.TORCHSCRIPT)),
        (STRANGER, upload(stores.artifacts, CONTENT, owner=STRANGER)),
    ]
    for owner, artifact in artifacts:
        assert files(tmp_path) == {BLOB: len(CONTENT)}
        stores.artifacts.delete(owner, artifact.artifact_id)
    assert files(tmp_path) == {}


def test_the_file_goes_with_the_last_one_who_has_it_whoever_still_wants_to_send_it(
    stores: OpenStores, tmp_path: Path
) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    announce(stores.artifacts, CONTENT, owner=STRANGER)
    stores.artifacts.delete(OWNER, artifact.artifact_id)
    assert files(tmp_path) == {}


def test_files_and_folders_are_for_their_owner_only(stores: OpenStores, tmp_path: Path) -> None:
    upload(stores.artifacts, CONTENT)
    pending = announce(stores.artifacts, CONTENT[1:])
    with stores.artifacts.open_upload(OWNER, pending.artifact_id) as writer:
        writer.write(0, b"x")
    root = tmp_path / "artifacts"
    for path in (root, *root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_bytes_become_durable_while_the_upload_goes_on(tmp_path: Path) -> None:
    stores = open_sqlite(tmp_path, ManualClock(), sync_every_bytes=1000)
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        seen = []
        for offset in range(0, 3000, 400):
            writer.write(offset, CONTENT[offset : offset + 400])
            seen.append(stores.artifacts.get(OWNER, artifact.artifact_id).committed_size_bytes)
        assert seen == [0, 0, 1200, 1200, 1200, 2400, 2400, 2400]
    stores.close()


def test_bytes_behind_the_committed_size_are_forgotten_after_a_crash(tmp_path: Path) -> None:
    dead = open_sqlite(tmp_path, ManualClock(), sync_every_bytes=1000)
    artifact = announce(dead.artifacts, CONTENT)
    upload_in_progress = dead.artifacts.open_upload(OWNER, artifact.artifact_id)
    writer = upload_in_progress.__enter__()
    writer.write(0, CONTENT[:1500])
    writer.write(1500, CONTENT[1500:1900])
    # A block of the file system that was allocated but never written.
    part = tmp_path / "artifacts" / "uploads" / f"{artifact.artifact_id}.part"
    with part.open("ab") as file:
        file.write(bytes(2 * len(CONTENT)))
    stores = open_sqlite(tmp_path, ManualClock())
    assert announce(stores.artifacts, CONTENT).committed_size_bytes == 1500
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as again:
        with pytest.raises(OffsetError):
            again.write(1900, CONTENT[1900:])
        again.write(1500, CONTENT[1500:])
        assert again.finish().active
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT
    stores.close()
    assert not upload_in_progress.__exit__(CrashError, CrashError(), None)
    dead.close()


@pytest.mark.parametrize("left", [0, 700, None])
def test_a_part_file_that_lost_bytes_continues_where_they_end(
    stores: OpenStores, tmp_path: Path, left: int | None
) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT[:1000])
    part = tmp_path / "artifacts" / "uploads" / f"{artifact.artifact_id}.part"
    if left is None:
        part.unlink()
    else:
        os.truncate(part, left)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        with pytest.raises(OffsetError) as caught:
            writer.write(1000, CONTENT[1000:])
        assert caught.value.metadata["committed_size_bytes"] == str(left or 0)
    assert upload(stores.artifacts, CONTENT).active
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


def test_bytes_that_rotted_in_the_part_file_are_found(stores: OpenStores, tmp_path: Path) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT[:1000])
    part = tmp_path / "artifacts" / "uploads" / f"{artifact.artifact_id}.part"
    with part.open("r+b") as file:
        file.seek(500)
        file.write(bytes([CONTENT[500] ^ 1]))
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(1000, CONTENT[1000:])
        with pytest.raises(ChecksumError):
            writer.finish()
    assert upload(stores.artifacts, CONTENT).active


def test_a_file_that_vanished_is_asked_for_again(stores: OpenStores, tmp_path: Path) -> None:
    artifact = upload(stores.artifacts, CONTENT)
    (tmp_path / "artifacts" / BLOB).unlink()
    with pytest.raises(NotFoundError, match="upload the file again"):
        stores.artifacts.open_read(OWNER, artifact.artifact_id)
    again = announce(stores.artifacts, CONTENT)
    assert (again.artifact_id, again.active, again.committed_size_bytes) == (artifact.artifact_id, False, 0)
    assert upload(stores.artifacts, CONTENT).active
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


def test_a_summary_that_this_version_cannot_read_counts_as_none(tmp_path: Path) -> None:
    stores = open_sqlite(tmp_path, ManualClock())
    artifact = upload(stores.artifacts, CONTENT)
    summary = DatasetSummary(
        container="npz", samples=1, inputs=(), targets=None, has_split=False, has_groups=False, size_bytes=1
    )
    stores.artifacts.put_summary(artifact.artifact_id, summary)
    stores.close()
    database = sqlite3.connect(tmp_path / "server.db")
    database.execute('UPDATE summaries SET summary = \'{"kind": "dataset", "of_another_version": 1}\'')
    database.commit()
    database.close()
    stores = open_sqlite(tmp_path, ManualClock())
    assert stores.artifacts.summary(artifact.artifact_id) is None
    stores.artifacts.put_summary(artifact.artifact_id, summary)
    assert stores.artifacts.summary(artifact.artifact_id) == summary
    stores.close()


# --- Garbage ----------------------------------------------------------------------------------------------------------


def test_files_that_no_row_names_go_once_they_are_old(tmp_path: Path) -> None:
    clock = ManualClock()
    stores = open_sqlite(tmp_path, clock, orphan_grace_seconds=3600.0)
    kept = upload(stores.artifacts, CONTENT)
    pending = announce(stores.artifacts, CONTENT[1:])
    with stores.artifacts.open_upload(OWNER, pending.artifact_id) as writer:
        writer.write(0, CONTENT[1:100])
    before = files(tmp_path)
    root = tmp_path / "artifacts"
    orphan = hashlib.sha256(b"orphan").hexdigest()
    orphans = [root / "blobs" / orphan[:2] / orphan, root / "uploads" / ("e" * 32 + ".part"), root / "uploads/f.tmp"]
    orphans[0].parent.mkdir(exist_ok=True)
    for path in orphans:
        path.write_bytes(b"12345")
    foreign = root / "blobs" / "README"
    foreign.write_bytes(b"of the operator")
    for path in root.rglob("*"):
        os.utime(path, (clock.time, clock.time))
    clock.advance(3599)
    assert stores.artifacts.collect_garbage() == 0
    clock.advance(1)
    assert stores.artifacts.collect_garbage() == 15
    foreign.unlink()
    assert files(tmp_path) == before
    assert read(stores.artifacts, kept.artifact_id) == CONTENT
    stores.close()


def test_collecting_at_any_moment_takes_nothing_that_is_in_use(tmp_path: Path) -> None:
    stores = open_sqlite(tmp_path, ManualClock(), **ANY_AGE)
    done = threading.Event()
    rounds = 0

    def collect() -> None:
        nonlocal rounds
        while not done.is_set():
            stores.artifacts.collect_garbage()
            rounds += 1

    def work(thread: int) -> None:
        owner = f"owner-{thread}"
        for number in range(20):
            content = hashlib.sha256(bytes([thread % 2, number])).digest() * 100
            artifact = upload(stores.artifacts, content, owner=owner)
            assert read(stores.artifacts, artifact.artifact_id, owner) == content
            if number % 3 == 0:
                stores.artifacts.delete(owner, artifact.artifact_id)

    with ThreadPoolExecutor(5) as threads:
        collector = threads.submit(collect)
        try:
            list(threads.map(work, range(4)))
        finally:
            done.set()
        collector.result(timeout=10)
    assert rounds > 0
    for thread in range(4):
        for artifact in stores.artifacts.list(f"owner-{thread}", None, 100, "")[0]:
            assert sha256_of(read(stores.artifacts, artifact.artifact_id, artifact.owner)) == artifact.sha256
    stores.close()


def test_what_a_job_needs_by_now_is_spared_although_it_was_due_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = open_sqlite(tmp_path, ManualClock())
    job, artifact = stores.run(), upload(stores.artifacts, CONTENT)
    stores.clock.advance(10 * RETENTION_SECONDS)
    due = artifact_rows.expired_ids

    def due_just_before_a_job_ends(connection: sqlite3.Connection, now: float) -> object:
        ids = due(connection, now)
        result = Result(
            model_artifact_id=artifact.artifact_id,
            report_artifact_id=artifact.artifact_id,
            verdict=Verdict.PASS,
            sparsity=0.5,
        )
        stores.jobs.succeed(job.job_id, 1, result)
        return ids

    monkeypatch.setattr(artifact_rows, "expired_ids", due_just_before_a_job_ends)
    assert stores.artifacts.collect_garbage() == 0
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT
    stores.close()


# --- Full disks -------------------------------------------------------------------------------------------------------


def test_an_upload_that_the_disk_has_no_room_for_is_refused_at_once(tmp_path: Path) -> None:
    stores = open_sqlite(tmp_path, ManualClock(), min_free_bytes=2**60)
    with pytest.raises(CapacityError) as caught:
        announce(stores.artifacts, CONTENT)
    assert caught.value.reason is Reason.STORAGE_FULL
    assert stores.artifacts.list(OWNER, None, 10, "") == ((), "")
    stores.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_what_arrived(
    stores: OpenStores, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    pwrite = os.pwrite

    def full_after_1500(fd: int, data: memoryview, offset: int) -> int:
        if offset >= 1500:
            raise OSError(code, "full")
        return pwrite(fd, data[: 1500 - offset], offset)

    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT[:1000])
        with monkeypatch.context() as patch:
            patch.setattr(blob_files.os, "pwrite", full_after_1500)
            with pytest.raises(CapacityError) as caught:
                writer.write(1000, CONTENT[1000:3000])
            assert caught.value.reason is Reason.STORAGE_FULL
    assert stores.artifacts.get(OWNER, artifact.artifact_id).committed_size_bytes == 1000
    assert upload(stores.artifacts, CONTENT).active
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


def test_what_the_disk_failed_to_keep_is_never_promised(stores: OpenStores, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = announce(stores.artifacts, CONTENT)
    fsync, failures = os.fsync, [OSError(errno.EIO, "lost")]

    def fail_once(fd: int) -> None:
        if failures and stat.S_ISREG(os.fstat(fd).st_mode):
            raise failures.pop()
        fsync(fd)

    def send() -> None:
        with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
            writer.write(0, CONTENT)
            writer.finish()

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(OSError, match="lost"):
        send()
    assert failures == []
    left = stores.artifacts.get(OWNER, artifact.artifact_id)
    assert (left.active, left.committed_size_bytes) == (False, 0)
    send()
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT


def test_a_result_that_does_not_fit_leaves_nothing(
    stores: OpenStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "pruned.pt"
    source.write_bytes(CONTENT)

    def full(_fd: int, _data: memoryview, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(blob_files.os, "pwrite", full)
    with pytest.raises(CapacityError):
        stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "")
    assert files(tmp_path) == {}


LIMITED_CHILD = """
import resource, sys
from pathlib import Path
from helpers.stores import OWNER, ManualClock, announce, open_sqlite, random_bytes
from pruning_server.errors import CapacityError

resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
content = random_bytes(11, 1_000_000)
stores = open_sqlite(Path(sys.argv[1]), ManualClock())
artifact = announce(stores.artifacts, content)
try:
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        for offset in range(0, len(content), 50_001):
            writer.write(offset, content[offset : offset + 50_001])
except CapacityError as error:
    print(error.reason, stores.artifacts.get(OWNER, artifact.artifact_id).committed_size_bytes)
"""


def test_a_real_limit_of_the_system_is_met_without_harm(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", LIMITED_CHILD, str(tmp_path)],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert answer.stdout.split() == ["STORAGE_FULL", str(11 * 50_001)], answer.stderr
    stores = open_sqlite(tmp_path, ManualClock())
    content = random_bytes(11, 1_000_000)
    artifact = upload(stores.artifacts, content)
    assert read(stores.artifacts, artifact.artifact_id) == content
    stores.close()


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_memory_stays_flat_whatever_the_size(stores: OpenStores, tmp_path: Path) -> None:
    block, blocks = random_bytes(3, 2**20), 24
    digest = hashlib.sha256(block * blocks).hexdigest()
    source = tmp_path / "result"
    with source.open("wb") as file:
        for _ in range(blocks):
            file.write(block)
    tracemalloc.start()
    artifact = stores.artifacts.create(OWNER, ArtifactKind.DATASET, digest, blocks * len(block), "")
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        for number in range(blocks - 1):
            writer.write(number * len(block), block)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write((blocks - 1) * len(block), block)
        writer.finish()
    stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(block)


# --- Crashes ----------------------------------------------------------------------------------------------------------


def crash_in(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, *, before: bool) -> None:
    """Lets the call of a step end in a crash, before it did anything or after it did all."""
    real: Callable[..., object] = getattr(owner, name)

    def crash(*args: object, **kwargs: object) -> object:
        if not before:
            real(*args, **kwargs)
        raise CrashError

    monkeypatch.setattr(owner, name, crash)


STEPS = [
    pytest.param(artifact_rows, "verify", True, id="before the bytes are marked as verified"),
    pytest.param(BlobFiles, "publish", True, id="before the rename"),
    pytest.param(BlobFiles, "publish", False, id="after the rename"),
    pytest.param(artifact_rows, "activate", True, id="before the row is active"),
    pytest.param(artifact_rows, "activate", False, id="before the row's commit"),
]


@pytest.mark.parametrize(("owner", "name", "before"), STEPS)
def test_a_crash_while_finishing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, before: bool
) -> None:
    dead = open_sqlite(tmp_path, ManualClock())
    artifact = announce(dead.artifacts, CONTENT)
    with dead.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, CONTENT)
    with monkeypatch.context() as patch:
        crash_in(patch, owner, name, before=before)
        upload_in_progress = dead.artifacts.open_upload(OWNER, artifact.artifact_id)
        with pytest.raises(CrashError):
            upload_in_progress.__enter__().finish()
    stores = open_sqlite(tmp_path, ManualClock(), **ANY_AGE)
    assert stores.artifacts.collect_garbage() == 0
    found = stores.artifacts.get(OWNER, artifact.artifact_id)
    # Only before the bytes were marked as verified is anything left to do, and never must they be sent again.
    assert found.active == (name != "verify")
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(len(CONTENT), b"")
        assert writer.finish().active
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT
    assert files(tmp_path) == {BLOB: len(CONTENT)}
    stores.close()
    assert not upload_in_progress.__exit__(CrashError, CrashError(), None)
    dead.close()


@pytest.mark.parametrize(
    ("owner", "name", "before"),
    [*STEPS[1:3], pytest.param(artifact_rows, "insert", False, id="before the row's commit")],
)
def test_a_crash_while_storing_a_result_leaves_nothing_but_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, before: bool
) -> None:
    source = tmp_path / "pruned.pt"
    source.write_bytes(CONTENT)
    dead = open_sqlite(tmp_path, ManualClock())
    with monkeypatch.context() as patch:
        crash_in(patch, owner, name, before=before)
        # A dead process does not tidy up either.
        patch.setattr(Path, "unlink", lambda *_args, **_kwargs: None)
        with pytest.raises(CrashError):
            dead.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "")
    stores = open_sqlite(tmp_path, ManualClock(), **ANY_AGE)
    assert len(files(tmp_path)) == 1
    assert stores.artifacts.collect_garbage() == len(CONTENT)
    assert files(tmp_path) == {}
    again = stores.artifacts.put_file(OWNER, ArtifactKind.TORCHSCRIPT, source, "")
    assert read(stores.artifacts, again.artifact_id) == CONTENT
    stores.close()
    dead.close()


def test_a_crash_while_deleting_leaves_nothing_but_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = open_sqlite(tmp_path, ManualClock())
    artifact = upload(dead.artifacts, CONTENT)
    with monkeypatch.context() as patch:
        crash_in(patch, BlobFiles, "remove_blob", before=True)
        with pytest.raises(CrashError):
            dead.artifacts.delete(OWNER, artifact.artifact_id)
    stores = open_sqlite(tmp_path, ManualClock(), **ANY_AGE)
    with pytest.raises(NotFoundError):
        stores.artifacts.get(OWNER, artifact.artifact_id)
    assert stores.artifacts.collect_garbage() == len(CONTENT)
    assert upload(stores.artifacts, CONTENT).active
    stores.close()
    dead.close()


def test_a_database_that_fails_after_the_rename_is_caught_up_with(
    stores: OpenStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise CapacityError(Reason.STORAGE_FULL, "full")

    artifact = announce(stores.artifacts, CONTENT)
    other = upload(stores.artifacts, CONTENT, owner=STRANGER)

    def send() -> None:
        with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
            writer.write(0, CONTENT)
            writer.finish()

    with monkeypatch.context() as patch:
        patch.setattr(artifact_rows, "activate", full)
        with pytest.raises(CapacityError):
            send()
    stores.artifacts.delete(STRANGER, other.artifact_id)
    stores.clock.advance(UPLOAD_RETENTION_SECONDS - 1)
    assert stores.artifacts.collect_garbage() == 0
    assert announce(stores.artifacts, CONTENT).committed_size_bytes == len(CONTENT)
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        assert writer.finish().active
    assert read(stores.artifacts, artifact.artifact_id) == CONTENT
