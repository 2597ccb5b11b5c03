"""Every way in which a run can die has its name: in the job, the event, the metrics, and what the CLI says and exits with."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from helpers import standin_server
from helpers.models import mlp, save_scripted, table_data
from helpers.processes import command_lines, wait_until
from helpers.running_server import RunningServer
from pruning_client import PruningClient
from pruning_client.cli.main import main

FAILED, REFUSED, CANCELLED = 1, 2, 4


class Death(NamedTuple):
    """What is told of one: the reason, the label of the metric of exits, and that of the metric of jobs."""

    reason: str
    cause: str
    group: str
    words: str


EXCEPTION = Death("WORKER_EXCEPTION", "exception", "exception", "broken")
SIGNAL = Death("WORKER_SIGNAL", "signal", "signal", "SIGSEGV")
MEMORY = Death("WORKER_OUT_OF_MEMORY", "oom", "out_of_memory", "memory_bytes")
DEADLINE = Death("DEADLINE_EXCEEDED", "deadline", "deadline", "--timeout")
LOST = Death("WORKER_LOST", "lost", "lost", "killed from outside")
GATE = Death("MODEL_NOT_A_ZIP", "gate", "model", "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    flags = ("--max-attempts", "1", "--cpu-slots", "1", "--memory-per-job", "400MiB")
    with RunningServer(tmp_path_factory.mktemp("server") / "data", *flags, program=standin_server.PROGRAM) as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save_scripted(mlp(), folder / "model.pt")
    inputs, targets = table_data(60)
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    return folder


@pytest.fixture
def submit(
    server: RunningServer, files: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """`prune submit ... --json` of a job that behaves; returns the exit code and the answer."""

    def call(behaviour: str, *flags: str, model: Path | None = None) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(
            ["submit", str(model or files / "model.pt"), "--validation", str(files / "data.npz"), "--strategy", "static",
             "--sparsity", "0.5", "--no-recovery", "--exclude-layers", behaviour, "--device", "cpu", "--json",
             "--server", server.address, *flags]
        )  # fmt: skip
        return code, json.loads(capsys.readouterr().out)

    return call


def metrics(server: RunningServer) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def count(found: dict[str, float], name: str, **labels: str) -> float:
    """The sum of the series of a counter with these labels."""
    return sum(
        value
        for series, value in found.items()
        if series.startswith(f"{name}{{") and all(f'{key}="{label}"' in series for key, label in labels.items())
    )


def assert_told(server: RunningServer, before: dict[str, float], job_id: str, death: Death) -> None:
    """The job, its last event and both metrics agree."""
    with PruningClient(server.address) as client:
        job = client.get(job_id)
        [*_, last] = list(client.watch(job_id))
    assert job.failure is not None
    assert (job.failure.reason, job.failure.metadata["exit_cause"]) == (death.reason, death.cause)
    assert last.body.failure is not None
    assert last.body.failure.reason == death.reason
    after = metrics(server)
    assert count(after, "pruning_worker_exits_total", cause=death.cause) == 1 + count(
        before, "pruning_worker_exits_total", cause=death.cause
    )
    told = {"outcome": "failed", "reason": death.group}
    assert count(after, "pruning_jobs_completed_total", **told) == 1 + count(
        before, "pruning_jobs_completed_total", **told
    )


@pytest.mark.parametrize(
    ("behaviour", "flags", "death"),
    [
        ("raise", (), EXCEPTION),
        ("segfault", (), SIGNAL),
        ("eat", (), MEMORY),
        ("hang", ("--timeout", "2"), DEADLINE),
    ],
    ids=["exception", "signal", "oom", "deadline"],
)
def test_a_death_by_the_worker_s_own_doing(
    server: RunningServer,
    submit: Callable[..., tuple[int, dict[str, Any]]],
    behaviour: str,
    flags: tuple[str, ...],
    death: Death,
) -> None:
    before = metrics(server)
    code, answer = submit(behaviour, *flags)
    assert (code, answer["state"], answer["reason"]) == (FAILED, "FAILED", death.reason)
    assert death.words in answer["message"]
    assert_told(server, before, answer["job"], death)


def worker_pid(server: RunningServer) -> int:
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [pid for pid, line in command_lines(f"{server.data_dir}/jobs").items() if "standin_worker" in line]
        return bool(found)

    wait_until(is_there, 20.0, "the worker")
    return found[0]


def test_a_kill_from_outside_is_a_loss(
    server: RunningServer, submit: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    before = metrics(server)
    killer = threading.Thread(target=lambda: os.kill(worker_pid(server), signal.SIGKILL))
    killer.start()
    code, answer = submit("hang")
    killer.join()
    assert (code, answer["reason"]) == (FAILED, LOST.reason)
    assert LOST.words in answer["message"]
    assert_told(server, before, answer["job"], LOST)


def test_a_cancelled_job_is_no_failure(
    server: RunningServer, submit: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    before = metrics(server)

    def cancel() -> None:
        worker_pid(server)
        with PruningClient(server.address) as client:
            [running] = [job for job in client.list() if job.state == "RUNNING"]
            client.cancel(running.job_id)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    code, answer = submit("hang")
    canceller.join()
    assert (code, answer["state"]) == (CANCELLED, "CANCELLED")
    after = metrics(server)
    assert count(after, "pruning_worker_exits_total", cause="cancelled") == 1 + count(
        before, "pruning_worker_exits_total", cause="cancelled"
    )
    assert count(after, "pruning_jobs_completed_total", outcome="cancelled") == 1 + count(
        before, "pruning_jobs_completed_total", outcome="cancelled"
    )


def test_a_hostile_archive_is_refused_before_there_is_a_job(
    server: RunningServer, submit: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile.pt"
    hostile.write_bytes(b"not an archive at all")
    jobs = len(list(PruningClient(server.address).list()))
    code, answer = submit("nothing", model=hostile)
    assert (code, answer["job"], answer["reason"]) == (REFUSED, None, "MODEL_NOT_A_ZIP")
    assert len(list(PruningClient(server.address).list())) == jobs


def test_a_file_that_the_gate_refuses_at_the_run_fails_the_job(
    server: RunningServer, submit: Callable[..., tuple[int, dict[str, Any]]], files: Path
) -> None:
    """A file that was fine when the job was made, and is not when it starts: the gate is asked again."""
    before = metrics(server)
    model = files / "spoiled.pt"
    save_scripted(mlp(hidden=16), model)
    held = submit("slow=4", "--no-wait")[1]["job"]
    queued = submit("nothing", "--no-wait", model=model)[1]["job"]
    [blob] = [path for path in server.data_dir.rglob("*") if path.is_file() and path.read_bytes() == model.read_bytes()]
    blob.chmod(0o600)
    original = blob.read_bytes()
    blob.write_bytes(b"PK is not enough")
    try:
        with PruningClient(server.address) as client:
            assert client.wait(held).state in {"SUCCEEDED", "FAILED"}
            ended = client.wait(queued)
    finally:
        blob.write_bytes(original)
    assert ended.failure is not None
    assert re.match("MODEL_", ended.failure.reason)
    assert_told(server, before, queued, GATE._replace(reason=ended.failure.reason))


def test_the_server_serves_on(server: RunningServer, submit: Callable[..., tuple[int, dict[str, Any]]]) -> None:
    code, answer = submit("nothing")
    assert (code, answer["state"]) == (0, "SUCCEEDED")
    assert command_lines(f"{server.data_dir}/jobs") == {}
