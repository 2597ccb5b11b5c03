"""A real server process with tokens: the CLI gets in with one, and what is secret shows nowhere; and it stops gracefully."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from helpers import standin_server
from helpers.certificates import self_signed
from helpers.models import mlp, save_scripted, table_data
from helpers.processes import children_of, wait_until
from helpers.running_server import RunningServer
from pruning_client import (
    ArtifactKind,
    JobState,
    PruningClient,
    RemoteFile,
    ResourceExhaustedError,
    RetryPolicy,
    Snapshot,
    Sparsity,
    StateChange,
    Static,
    Submission,
    UnavailableError,
)
from pruning_client.values import Heartbeat


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    inputs, targets = table_data()
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    save_scripted(mlp(), folder / "model.pt")
    return folder


def submission(files: Path, *behaviours: str) -> Submission:
    return Submission(
        files / "model.pt", files / "data.npz", Static(), Sparsity(0.5), device="cpu", exclude_layers=behaviours
    )


def make_token(file: Path, name: str, role: str = "submit") -> Path:
    """As an operator does: the command prints the token, and the shell puts it into a file."""
    command = [sys.executable, "-m", "pruning_server", "token", "add", name, "--role", role, "--token-file", str(file)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    path = file.with_name(f"{name}.token")
    path.write_bytes(done.stdout)
    return path


def call(server: RunningServer, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "pruning_client", *arguments, "--json", "--server", server.address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_with_a_token_and_without_and_nothing_secret_anywhere(tmp_path: Path, files: Path) -> None:
    book = tmp_path / "tokens"
    alice, bob = make_token(book, "alice"), make_token(book, "bob")
    secrets = [path.read_text().strip() for path in (alice, bob)]
    flags = ("--token-file", str(book), "--log-level", "DEBUG", "--drain-timeout", "0")
    with RunningServer(tmp_path / "data", *flags, program=standin_server.PROGRAM) as server:
        code, out, _ = call(server, "jobs")
        assert (code, json.loads(out)["reason"]) == (5, "UNAUTHENTICATED")
        with PruningClient(server.address, token_file=alice) as client:
            job_id = client.submit(submission(files, "silent")).job_id
            wait_until(lambda: client.get(job_id).state is JobState.RUNNING, 60)
            wait_until(lambda: children_of(server.pid), 60, "a worker")
            lines = [command_line(pid) for pid in (server.pid, *children_of(server.pid))]
        code, out, _ = call(server, "show", job_id, "--token-file", str(bob))
        assert (code, json.loads(out)["reason"]) == (5, "JOB_NOT_FOUND")
        code, out, errors = call(server, "cancel", job_id, "--token-file", str(alice))
        assert code == 0, errors
        assert call(server, "jobs", "--token-file", str(bob))[1].strip() == '{"jobs": []}'
        late = make_token(book, "carol")
        wait_until(lambda: call(server, "jobs", "--token-file", str(late))[0] == 0, 60)
        log = server.log.read_text()
    assert "CreatePruningJob" in log
    assert "alice" in log, "the log says who did it"
    everything = [*lines, log, *(read(path) for path in tmp_path.rglob("*") if path.suffix != ".token")]
    for secret in secrets:
        assert len(secret) > 40
        assert not any(secret in text for text in everything)


def test_quotas_uris_and_tls_by_flags(tmp_path: Path, files: Path) -> None:
    """What the flags say reaches what enforces it."""
    pair = self_signed(tmp_path, "server")
    sizes = sum((files / name).stat().st_size for name in ("model.pt", "data.npz"))
    flags = (
        *("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--tls-client-ca", str(pair.certificate)),
        *("--max-bytes-per-principal", str(sizes + 10), "--max-queued-per-principal", "1"),
        *("--max-running-per-principal", "1", "--cpu-slots", "3", "--requests-per-second", "50"),
        *("--allow-uri", f"file://{files}/", "--drain-timeout", "0"),
    )
    policy = RetryPolicy(attempts=1, exhausted_seconds=0.0)
    with RunningServer(tmp_path / "data", *flags, program=standin_server.PROGRAM) as server:
        port = server.address.rpartition(":")[2]
        with PruningClient(
            f"localhost:{port}",
            tls_ca=pair.certificate,
            tls_cert=pair.certificate,
            tls_key=pair.key,
            retry_policy=policy,
        ) as client:
            model, data = (
                RemoteFile(f"file://{files}/{name}", hashlib.sha256((files / name).read_bytes()).hexdigest())
                for name in ("model.pt", "data.npz")
            )
            wanted = dataclasses.replace(submission(files, "silent"), model=model, validation=data)
            running = client.submit(wanted).job_id
            wait_until(lambda: client.get(running).state is JobState.RUNNING, 60)
            waiting = client.submit(wanted).job_id
            with pytest.raises(ResourceExhaustedError) as caught:
                client.submit(wanted)
            assert (caught.value.reason, caught.value.metadata) == ("QUOTA_EXCEEDED", {"quota": "queued_jobs"})
            assert client.get(waiting).state is JobState.QUEUED, "two slots are free, and the principal's share is used"
            (tmp_path / "more").write_bytes(b"x" * 11)
            with pytest.raises(ResourceExhaustedError) as caught:
                client.upload_artifact(tmp_path / "more", ArtifactKind.DATASET)
            assert (caught.value.reason, caught.value.metadata) == ("QUOTA_EXCEEDED", {"quota": "stored_bytes"})
            with pytest.raises(ResourceExhaustedError) as caught:
                hammer(client, running)
            assert caught.value.reason == "RATE_LIMITED"
        with (
            pytest.raises(UnavailableError),
            PruningClient(f"localhost:{port}", tls_ca=pair.certificate, retry_policy=policy) as stranger,
        ):
            stranger.server_info()


def hammer(client: PruningClient, job_id: str) -> None:
    for _ in range(2000):
        client.get(job_id)


@pytest.mark.slow
def test_a_server_that_stops_says_so_and_its_successor_goes_on(tmp_path: Path, files: Path) -> None:
    """Not ready at once, no new jobs; what runs may end; what does not is queued again, and its watch goes on."""
    server = RunningServer(
        tmp_path / "data", "--cpu-slots", "2", "--drain-timeout", "8", program=standin_server.PROGRAM
    ).start()
    with PruningClient(server.address) as client, grpc.insecure_channel(server.address) as channel:
        short, long = (client.submit(submission(files, behaviour)).job_id for behaviour in ("slow=2", "silent"))
        wait_until(lambda: {client.get(job).state for job in (short, long)} == {JobState.RUNNING}, 60)
        wait_until(lambda: len(children_of(server.pid)) == 2, 60, "two workers")
        told: list[Exception] = []
        watcher = threading.Thread(target=follow, args=(server.address, long, told))
        watcher.start()
        assert server.process is not None
        server.process.terminate()
        health = health_pb2_grpc.HealthStub(channel)
        wait_until(lambda: not_serving(health), 3)
        with pytest.raises(UnavailableError) as caught:
            client.submit(submission(files))
        assert caught.value.reason == "DRAINING"
        assert client.get(short).state is JobState.RUNNING, "what was accepted goes on, and can be asked for"
        assert server.process.wait(timeout=60) == 0
        watcher.join(10)
        assert [getattr(error, "reason", "") for error in told] == ["DRAINING"], "the stream was told"
        port = server.address.rpartition(":")[2]
        assert server.process.stdout is not None
        server.process.stdout.close()
    again = RunningServer(tmp_path / "data", "--address", f"127.0.0.1:{port}", program=standin_server.PROGRAM)
    with again, PruningClient(again.address) as client:
        assert client.get(short).state is JobState.SUCCEEDED
        wait_until(lambda: client.get(long).state is JobState.RUNNING, 60)
        job = client.get(long)
        assert (job.attempt, job.max_attempts) == (2, 4), "it lost no attempt"
        client.cancel(long)
        seen = list(client.watch(long, after_sequence=1))
    numbered = [event for event in seen if not isinstance(event.body, Snapshot | Heartbeat)]
    assert [event.sequence for event in numbered] == list(range(2, len(numbered) + 2))
    states = [event.body.state for event in numbered if isinstance(event.body, StateChange)]
    assert states[-1] is JobState.CANCELLED
    assert JobState.QUEUED in states


def follow(address: str, job_id: str, told: list[Exception]) -> None:
    """Watches once, and remembers how that ended."""
    with PruningClient(address, retry_policy=RetryPolicy(attempts=1, outage_seconds=0.0)) as client:
        try:
            list(client.watch(job_id))
        except UnavailableError as error:
            told.append(error)


def not_serving(health: health_pb2_grpc.HealthStub) -> bool:
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=5)
    return answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def read(path: Path) -> str:
    return path.read_bytes().decode("latin-1") if path.is_file() else ""
