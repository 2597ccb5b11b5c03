"""A server that is killed again and again while clients work it, and the accounts at the end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np

from helpers import faulty_server
from helpers.chaos.clients import Client, Shared, act_forever
from helpers.chaos.history import Broken, Deleting, History, JobMade, Stored, violations
from helpers.failpoints import SITES
from helpers.models import mlp, save_scripted, table_data
from helpers.processes import command_lines, is_alive
from helpers.stores import MAX_ARTIFACT_BYTES, RETENTION_SECONDS, UPLOAD_RETENTION_SECONDS
from pruning_api.v1 import artifact_pb2, pruning_job_pb2
from pruning_server.adapters.artifact_store import LocalArtifactStore
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.database import Database

CLIENTS = 8
START_SECONDS = 60.0
ORPHAN_SECONDS = 10.0
END_SECONDS = 120.0
# Of the calls before the first and after the last kill.
PATIENCE_SECONDS = 60.0
FLAGS = ("--cpu-slots", "2", "--queue-capacity", "12", "--max-attempts", "3", "--log-level", "WARNING")


class Nursery:
    """Starts one server after the other on a data folder, without importing everything anew each time."""

    def __init__(self, data_dir: Path, bug: str = "") -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_name("server.log")
        self._bug = bug
        self.pid = 0
        self._process = subprocess.Popen(
            [sys.executable, *faulty_server.PROGRAM, "--nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("PRUNING_")},
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, failpoints: str = "") -> str | None:
        """Starts a server and returns its address; None: it died before it was ready."""
        argv = ["--data-dir", str(self.data_dir), "--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
        argv += ["--insecure-no-sandbox", *FLAGS]
        order = {"argv": argv, "log": str(self.log), "failpoints": failpoints, "bug": self._bug}
        self.pid = 0
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            said = self._next_line()
            if "pid" in said:
                self.pid = int(str(said["pid"]))
            elif "address" in said and self.pid:
                return str(said["address"])
            elif self.pid and not _exists(self.pid) and self._lines.empty():
                self.pid = 0
                return None
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def refusals(self) -> int:
        """How often a server has said that it cannot start, and ended by itself."""
        return self.log.read_text().count("pruning-server: ") if self.log.exists() else 0

    def is_running(self) -> bool:
        return self.pid != 0 and _exists(self.pid)

    def end(self, number: signal.Signals) -> None:
        """Sends the signal and waits until the server is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        self.wait(60.0)

    def wait(self, seconds: float) -> bool:
        """Waits for the end of the server; returns whether it came."""
        deadline = time.monotonic() + seconds
        while _exists(self.pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _next_line(self) -> dict[str, object]:
        try:
            said = json.loads(self._lines.get(timeout=0.05))
        except queue.Empty:
            return {}
        assert isinstance(said, dict)
        return said

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # A server that was killed while it said something leaves a part of a line before the next one.
            self._lines.put(b"{" + line.rstrip().removesuffix(b"}").rpartition(b"{")[2] + b"}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._reader.join(timeout=30)
        self._process.stdout.close()


@dataclass
class Outcome:
    """What a run did and found."""

    kills: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    facts: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def server_kills(self) -> int:
        """How often a server was killed."""
        return sum(count for what, count in self.kills.items() if what != "worker")

    def add(self, other: Outcome) -> None:
        """Adds another run."""
        self.kills += other.kills
        self.calls += other.calls
        self.facts += other.facts
        self.violations += other.violations


class World:
    """One data folder, its servers, its clients and their history."""

    def __init__(self, folder: Path, seed: int, bug: str = "") -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.history = History()
        self.shared = Shared(self.history)
        self.outcome = Outcome()
        self._chance = random.Random(seed)
        self._seed = seed
        self._bug = bug
        self._orphans: dict[int, tuple[str, float]] = {}

    def run(self, kills: int, is_over: Callable[[], bool] = lambda: False) -> Outcome:
        """Kills the server so many times, lets what is left come to its end, and checks everything."""
        with Nursery(self.data_dir, self._bug) as nursery:
            self._begin(nursery)
            clients = [
                threading.Thread(
                    target=act_forever, args=(self.shared, self._seed * 100 + number, self._complain), daemon=True
                )
                for number in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            while self.outcome.server_kills < kills and not is_over():
                self._round(nursery)
            self.shared.stopping.set()
            for client in clients:
                client.join(timeout=60)
            self._end(nursery)
        self._check_folder()
        self.outcome.calls = self.shared.calls
        self.outcome.facts = len(self.history.facts)
        self.outcome.violations = list(dict.fromkeys(violations(self.history.facts)))
        return self.outcome

    # --- rounds -------------------------------------------------------------------------------------------------------

    def _begin(self, nursery: Nursery) -> None:
        inputs, targets = table_data(60)
        np.savez(self.folder / "data.npz", inputs=inputs, targets=targets)
        model, data = (
            save_scripted(mlp(), self.folder / "model.pt").read_bytes(),
            (self.folder / "data.npz").read_bytes(),
        )
        self._start(nursery, "")
        client = Client(self.shared, self.shared.address, PATIENCE_SECONDS)
        self.shared.model = client.upload(model, artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT)
        self.shared.data = client.upload(data, artifact_pb2.ARTIFACT_KIND_DATASET)
        # The gate has seen the files from now on.
        client.submit("first", 0)
        client.close()
        nursery.end(signal.SIGKILL)

    def _round(self, nursery: Nursery) -> None:
        """One server from its start to its death."""
        failpoints = self._faults()
        refusals = nursery.refusals()
        if not self._start(nursery, failpoints):
            if nursery.refusals() == refusals:
                self._note_death(_place(failpoints) if "=kill" in failpoints else "worker kills its server")
            elif not self.shared.faults_are_on:
                self._complain("a server refused to start")
            return
        # Long enough for most failpoints to be reached.
        seconds = self._chance.uniform(0.6, 1.6) if "=kill" in failpoints else self._chance.uniform(0.0, 1.0)
        if self._chance.random() < 0.4:
            self._kill_a_worker(nursery, seconds)
        if nursery.wait(seconds):
            # A worker that kills its server comes before a failpoint that is not reached.
            self._note_death(_place(failpoints) if "=kill" in failpoints else "worker kills its server")
        else:
            nursery.end(signal.SIGKILL)
            self._note_death("any moment")

    def _faults(self) -> str:
        """What is to go wrong in the next server: mostly a death at some failpoint, sometimes a disk that fails, too."""
        chance, faults = self._chance, []
        if chance.random() < 0.75:
            faults.append(f"{chance.choice(SITES)}@{chance.choice((1, 1, 1, 2, 4))}=kill")
        self.shared.faults_are_on = chance.random() < 0.2
        if self.shared.faults_are_on:
            site = chance.choice([site for site in SITES if "after" not in site and "recover" not in site])
            faults.append(f"{site}@{chance.randrange(1, 4)}={chance.choice(('eio', 'enospc'))}")
        return ";".join(faults)

    def _start(self, nursery: Nursery, failpoints: str) -> bool:
        address = nursery.start(failpoints)
        if address is not None:
            self.shared.address = address
        return address is not None

    def _note_death(self, cause: str) -> None:
        self.outcome.kills[cause] += 1
        now = time.monotonic()
        for pid, line in command_lines(f"{self.data_dir}/").items():
            self._orphans.setdefault(pid, (line, now + ORPHAN_SECONDS))
        self._look_for_orphans()

    def _look_for_orphans(self) -> None:
        for pid, (line, deadline) in list(self._orphans.items()):
            if not is_alive(pid):
                del self._orphans[pid]
            elif time.monotonic() > deadline:
                self._complain(f"process {pid} outlives its server: {line}")
                del self._orphans[pid]

    def _kill_a_worker(self, nursery: Nursery, seconds: float) -> None:
        """The first that is seen in so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and nursery.is_running():
            processes = command_lines(f"{self.data_dir}/jobs")
            if workers := sorted(pid for pid, line in processes.items() if "--workspace" in line):
                self.outcome.kills["worker"] += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._chance.choice(workers), signal.SIGKILL)
                return
            time.sleep(0.03)

    def _complain(self, text: str) -> None:
        with self.history.call() as record:
            record(Broken(subject=text))

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end(self, nursery: Nursery) -> None:
        """A server without faults, until every job has ended; then everything that was promised is asked for."""
        self.shared.faults_are_on = False
        self._start_for_good(nursery)
        self._cancel_all_but(3)
        deadline = time.monotonic() + END_SECONDS
        while unfinished := self._count_unfinished(nursery):
            if time.monotonic() > deadline:
                self._complain(f"{unfinished} jobs did not end within {END_SECONDS:g} s")
                break
            time.sleep(0.2)
        client = Client(self.shared, self.shared.address, PATIENCE_SECONDS)
        self._ask_for_everything(client)
        client.close()
        nursery.end(signal.SIGTERM)
        self._settle_orphans()

    def _cancel_all_but(self, kept: int) -> None:
        """So that the end does not take longer than all that came before."""
        client = Client(self.shared, self.shared.address, PATIENCE_SECONDS)
        with contextlib.suppress(grpc.RpcError):
            unfinished = [job.job_id for job in client.list_jobs() if job.state < pruning_job_pb2.JOB_STATE_SUCCEEDED]
            for job_id in unfinished[kept:]:
                client.cancel(job_id)
        client.close()

    def _start_for_good(self, nursery: Nursery) -> None:
        if not self._start(nursery, ""):
            raise AssertionError(f"the server does not start:\n{nursery.log.read_text()[-3000:]}")

    def _count_unfinished(self, nursery: Nursery) -> int:
        """How many jobs go on; at least one if the list could not be had, as a worker may still kill its server."""
        client = Client(self.shared, self.shared.address, PATIENCE_SECONDS)
        try:
            return sum(job.state < pruning_job_pb2.JOB_STATE_SUCCEEDED for job in client.list_jobs())
        except grpc.RpcError:
            if nursery.wait(5.0):
                self._note_death("worker kills its server")
                self._start_for_good(nursery)
            return 1
        finally:
            client.close()

    def _ask_for_everything(self, client: Client) -> None:
        deleting = {fact.subject for fact in self.history.facts if isinstance(fact, Deleting)}
        found = {job.job_id: job for job in client.list_jobs()}
        for job_id in found:
            client.watch(job_id, 0, to_the_end=True)
        promised = {fact.subject for fact in self.history.facts if isinstance(fact, JobMade)} - deleting
        artifacts = {fact.subject for fact in self.history.facts if isinstance(fact, Stored)} - deleting
        for job in found.values():
            artifacts |= {job.result.model_artifact_id, job.result.report_artifact_id} - {""}
        for ids, ask in ((promised - found.keys(), client.get), (artifacts, client.fetch)):
            for subject in sorted(ids):
                try:
                    ask(subject)
                except grpc.RpcError as error:
                    if subject in deleting:
                        continue
                    # NOT_FOUND is in the history already.
                    if error.code() is not grpc.StatusCode.NOT_FOUND:
                        self._complain(f"{subject}: {error.code().name}: {error.details()}")

    def _settle_orphans(self) -> None:
        """Nothing that belongs to this folder may be left when its last server is gone."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (left := command_lines(f"{self.data_dir}/")) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid, line in left.items():
            self._complain(f"process {pid} outlives its server: {line}")

    def _check_folder(self) -> None:
        """After a collection for which every file is old enough: every file has its row, and every row its file."""
        database = Database(self.data_dir / "jobs.sqlite3")
        # Else this collection would make good what the bug has left.
        grace = {} if self._bug == "orphan-blob" else {"orphan_grace_seconds": -1e12}
        artifacts = LocalArtifactStore(
            database, self.data_dir / "artifacts", SystemClock(), RETENTION_SECONDS, UPLOAD_RETENTION_SECONDS,
            MAX_ARTIFACT_BYTES, min_free_bytes=0, **grace,
        )  # fmt: skip
        artifacts.collect_garbage()
        with database.read() as connection:
            hashes = {
                row["sha256"] for row in connection.execute("SELECT sha256 FROM artifacts WHERE stage = 'ACTIVE'")
            }
            ids = {row["artifact_id"] for row in connection.execute("SELECT artifact_id FROM artifacts")}
            if (state := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                self._complain(f"the database is damaged: {state}")
        database.close()
        blobs = {path.name for path in (self.data_dir / "artifacts" / "blobs").rglob("*") if path.is_file()}
        parts = {path.stem for path in (self.data_dir / "artifacts" / "uploads").iterdir()}
        runs = [path for path in (self.data_dir / "jobs").rglob("*") if path.is_file()]
        for what, left in (
            ("orphan blobs", blobs - hashes), ("lost blobs", hashes - blobs), ("orphan parts", parts - ids),
            ("files of runs", runs),
        ):  # fmt: skip
            if left:
                self._complain(f"{what}: {sorted(map(str, left))[:5]}")


def _exists(pid: int) -> bool:
    """Until its last thread is gone, and with it its lock; a thread that waits for the disk outlasts the others."""
    return Path(f"/proc/{pid}").exists()


def _place(failpoints: str) -> str:
    return failpoints.partition("@")[0]
