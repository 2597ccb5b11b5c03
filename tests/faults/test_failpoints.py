"""Failpoints are reached where they say, do what they are told, and exist for tests only."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.failpoints import SITES, ArmedFailpoints, Rule
from helpers.stores import FAILURE, OWNER, RESULT, ManualClock, OpenStores, announce, open_sqlite, random_bytes, upload
from pruning_server.jobs.events import LogEvent, Severity
from pruning_server.spec.artifacts import ArtifactKind

ROOT = Path(__file__).parents[2]
# Reached by what needs a server: processes of workers, and the gate.
OF_SERVERS = {"worker.spawned", "commit.before/put_summary", "commit.after/put_summary"}


def visit_everything(stores: OpenStores, folder: Path) -> None:
    """Every operation of the stores that changes something."""
    job = stores.run("a")
    stores.jobs.append_event(job.job_id, 1, LogEvent(severity=Severity.INFO, message="hello"))
    stores.jobs.succeed(job.job_id, 1, RESULT)
    stores.jobs.delete(OWNER, job.job_id)
    other = stores.run("b")
    stores.jobs.recover("somebody else")
    stores.jobs.request_cancel(OWNER, other.job_id)
    last = stores.run("c")
    stores.jobs.fail(last.job_id, 1, FAILURE, retry=False)
    artifact = announce(stores.artifacts, random_bytes(1, 5000))
    with stores.artifacts.open_upload(OWNER, artifact.artifact_id) as writer:
        writer.write(0, random_bytes(1, 5000)[:1000])
    artifact = upload(stores.artifacts, random_bytes(1, 5000))
    (folder / "result").write_bytes(b"result")
    stores.artifacts.put_file(OWNER, ArtifactKind.REPORT, folder / "result", "")
    stores.artifacts.delete(OWNER, artifact.artifact_id)


def test_every_named_place_is_reached(tmp_path: Path) -> None:
    armed = ArmedFailpoints(";".join(f"{site}=sleep:0" for site in SITES))
    stores = open_sqlite(tmp_path, ManualClock(), failpoints=armed)
    visit_everything(stores, tmp_path)
    stores.close()
    assert set(SITES) - {rule.name for rule in armed.visits} == OF_SERVERS


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("upload.write=eio", OSError),
        ("upload.write=enospc", OSError),
        ("commit.before=eio", sqlite3.OperationalError),
        ("commit.before/create=enospc", sqlite3.OperationalError),
    ],
)
def test_an_armed_failpoint_fails_at_its_place_only(text: str, error: type[Exception]) -> None:
    armed = ArmedFailpoints(text)
    armed("publish.before")
    armed("commit.after")

    def create() -> None:
        armed(text.partition("=")[0].partition("/")[0])

    with pytest.raises(error):
        create()


def test_only_the_visit_that_was_named_fails() -> None:
    armed = ArmedFailpoints("stage.sync@2=eio")
    armed("stage.sync")
    with pytest.raises(OSError, match="Input/output"):
        armed("stage.sync")
    armed("stage.sync")


def test_a_killed_process_is_gone_at_once() -> None:
    script = "from helpers.failpoints import ArmedFailpoints; ArmedFailpoints('publish.before=kill')('publish.before')"
    killed = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT / "tests")}, timeout=30, check=False
    )
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize("text", ["publish.before", "publish.before=burn", "publish.before@x=kill"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"action|invalid literal"):
        Rule.parse(text)


def test_the_product_reads_no_such_variable() -> None:
    sources = [path.read_text() for path in (ROOT / "server").rglob("*.py")]
    assert len(sources) > 100
    assert not [text for text in sources if '"FAILPOINTS"' in text or '"BUG"' in text]
    assert "FAILPOINTS" not in os.environ
