"""The real server with stand-ins for its workers, with failpoints, and with a bug where a test asks for one.

    FAILPOINTS=commit.before/create@3=kill python faulty_server.py FLAGS...
    python faulty_server.py --nursery

Only this program reads FAILPOINTS and BUG; the product has no such setting. As a nursery it imports everything once and
then forks a server for each line of JSON on stdin, `{"argv": [...], "log": PATH, "failpoints": "...", "bug": "..."}`: a
restart takes a tenth of a second instead of one. It answers with `{"pid": N}`, then comes the server's own line.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pruning_server import wiring
from pruning_server.__main__ import main as serve
from pruning_server.adapters import executor
from pruning_server.adapters.blob_files import BlobFiles
from pruning_server.adapters.job_store import SqliteJobStore
from pruning_server.adapters.process import python_command
from pruning_server.jobs.model import Job
from pruning_server.jobs.probe import Probe

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import standin_worker
from helpers.failpoints import VARIABLE, ArmedFailpoints

PROGRAM = (str(Path(__file__)),)
BUG_VARIABLE = "BUG"


class KnownProbe:
    """Fills `jobs.ports.ProbeSource` with what the stand-ins can do, without asking a process."""

    def __init__(self, **_: object) -> None:
        pass

    def start(self) -> None:
        """Does nothing."""

    def stop(self) -> None:
        """Does nothing."""

    def get(self, _timeout_seconds: float) -> Probe:
        return standin_worker.PROBE


def _lose_a_job_at_restart() -> None:
    """The newest job that waits is forgotten when a server starts."""
    recover = SqliteJobStore.recover

    def broken(self: SqliteJobStore, lease_owner: str) -> Sequence[Job]:
        recovered = recover(self, lease_owner)
        with self._database.write() as connection:
            connection.execute(
                "DELETE FROM jobs WHERE job_id IN (SELECT job_id FROM jobs WHERE state = 'QUEUED'"
                " ORDER BY ordinal DESC LIMIT 1)"
            )
        return recovered

    SqliteJobStore.recover = broken  # type: ignore[method-assign]


def _lose_an_event_at_restart() -> None:
    """The newest event of each job that has not ended is forgotten, as if it had been shown before it was stored."""
    recover = SqliteJobStore.recover

    def broken(self: SqliteJobStore, lease_owner: str) -> Sequence[Job]:
        with self._database.write() as connection:
            unfinished = "SELECT job_id FROM jobs WHERE state IN ('RUNNING', 'CANCELLING') AND last_sequence > 2"
            connection.execute(
                f"DELETE FROM events WHERE job_id IN ({unfinished})"
                " AND sequence = (SELECT last_sequence FROM jobs WHERE jobs.job_id = events.job_id)"
            )
            connection.execute(f"UPDATE jobs SET last_sequence = last_sequence - 1 WHERE job_id IN ({unfinished})")
        return recover(self, lease_owner)

    SqliteJobStore.recover = broken  # type: ignore[method-assign]


def _leave_orphans() -> None:
    """Deleting an artifact leaves its file."""
    BlobFiles.remove_blob = lambda *_: 0  # type: ignore[assignment,method-assign]


BUGS = {"lost-job": _lose_a_job_at_restart, "lost-event": _lose_an_event_at_restart, "orphan-blob": _leave_orphans}


def run(argv: Sequence[str]) -> int:
    """Runs a server with the faults that the environment names."""
    worker = python_command(str(Path(__file__).with_name("standin_worker.py")))
    executor_type, server_type = executor.LocalExecutor, wiring.Server
    wiring.LocalExecutor = functools.partial(executor_type, worker_command=worker)  # type: ignore[assignment,misc]
    wiring.WorkerProbe = KnownProbe  # type: ignore[assignment,misc]
    failpoints = ArmedFailpoints(os.environ.get(VARIABLE, ""))
    wiring.Server = functools.partial(server_type, failpoints=failpoints)  # type: ignore[assignment,misc]
    if os.environ.get(BUG_VARIABLE):
        BUGS[os.environ[BUG_VARIABLE]]()
    return serve(argv)


def nursery() -> int:
    """Forks servers until stdin ends; they die with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.readline():
        order = json.loads(line)
        # Before the fork, so that it comes before what the server says.
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            _become_server(order)
        os.close(reader)
        # One write: a line is there whole or not at all.
        os.write(1, json.dumps({"pid": pid}).encode() + b"\n")
        os.close(writer)
    return 0


def _become_server(order: dict[str, str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.environ[VARIABLE], os.environ[BUG_VARIABLE] = order["failpoints"], order["bug"]
    code = 1
    try:
        code = run(order["argv"])
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> int:
    return nursery() if sys.argv[1:] == ["--nursery"] else run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
