"""kill -9 of the server at random moments: no job is lost, none ends twice, and no worker outlives its server."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import grpc
import numpy as np
import pytest

from helpers import standin_server
from helpers.models import mlp, save_scripted, table_data
from helpers.processes import command_lines, wait_until
from helpers.running_server import RunningServer
from pruning_api.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    pruning_job_pb2,
    pruning_job_service_pb2,
    pruning_job_service_pb2_grpc,
    spec_pb2,
)

JOBS = 20
TERMINAL = {
    pruning_job_pb2.JOB_STATE_SUCCEEDED,
    pruning_job_pb2.JOB_STATE_FAILED,
    pruning_job_pb2.JOB_STATE_CANCELLED,
}


class Caller:
    """The few calls that these tests make, over the generated stubs."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        self.jobs = pruning_job_service_pb2_grpc.PruningJobServiceStub(channel)

    def upload(self, path: Path, kind: int) -> str:
        data = path.read_bytes()
        request = artifact_service_pb2.CreateArtifactRequest(
            kind=kind, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
        artifact = self.artifacts.CreateArtifact(request, timeout=30).artifact
        chunk = artifact_service_pb2.WriteArtifactRequest(
            artifact_id=artifact.artifact_id, offset=0, data=data, crc32c=google_crc32c.value(data), finish_write=True
        )
        self.artifacts.WriteArtifact(iter([chunk]), timeout=30)
        return artifact.artifact_id

    def submit(self, request_id: str, model: str, data: str, seed: int, *behaviours: str) -> pruning_job_pb2.PruningJob:
        spec = spec_pb2.PruningSpec(
            model=spec_pb2.ArtifactSource(artifact_id=model),
            validation=spec_pb2.ArtifactSource(artifact_id=data),
            static=spec_pb2.StaticStrategy(),
            sparsity=0.5,
            device="cpu",
            seed=seed,
            recovery=spec_pb2.Recovery(disabled=True),
            exclude_layers=behaviours,
        )
        request = pruning_job_service_pb2.CreatePruningJobRequest(request_id=request_id, spec=spec)
        return self.jobs.CreatePruningJob(request, timeout=60).job

    def list(self) -> list[pruning_job_pb2.PruningJob]:
        request = pruning_job_service_pb2.ListPruningJobsRequest(page_size=1000)
        return list(self.jobs.ListPruningJobs(request, timeout=30).jobs)

    def events(self, job_id: str) -> list[pruning_job_pb2.PruningJobEvent]:
        request = pruning_job_service_pb2.WatchPruningJobRequest(job_id=job_id)
        return [answer.event for answer in self.jobs.WatchPruningJob(request, timeout=60)]


@contextmanager
def caller(server: RunningServer) -> Iterator[Caller]:
    with grpc.insecure_channel(server.address) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        yield Caller(channel)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save_scripted(mlp(), folder / "model.pt")
    inputs, targets = table_data(60)
    np.savez(folder / "data.npz", inputs=inputs, targets=targets)
    return folder


def submit_all(server: RunningServer, files: Path, jobs: int, *behaviours: str) -> set[str]:
    with caller(server) as call:
        model = call.upload(files / "model.pt", artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT)
        data = call.upload(files / "data.npz", artifact_pb2.ARTIFACT_KIND_DATASET)
        made = {call.submit(f"request-{seed}", model, data, seed, *behaviours).job_id for seed in range(jobs)}
        # Whoever repeats a call after a crash gets the same job.
        again = {call.submit(f"request-{seed}", model, data, seed, *behaviours).job_id for seed in range(jobs)}
        assert again == made
    assert len(made) == jobs
    return made


def check_history(call: Caller, job: pruning_job_pb2.PruningJob) -> None:
    """The first event of a watch is a snapshot; the others are gap-free, with one terminal state, the last of all."""
    _, *events = call.events(job.job_id)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [event.state.state for event in events if event.WhichOneof("event") == "state"]
    assert states[0] == pruning_job_pb2.JOB_STATE_QUEUED
    assert [state in TERMINAL for state in states] == [False] * (len(states) - 1) + [True]
    assert states[-1] == job.state
    assert events[-1].WhichOneof("event") == "state"
    assert states.count(pruning_job_pb2.JOB_STATE_RUNNING) == job.attempt <= job.max_attempts


def crash_and_recover(
    data_dir: Path,
    files: Path,
    *behaviours: str,
    jobs: int,
    kills: int,
    pause: tuple[float, float],
    program: tuple[str, ...],
) -> list[pruning_job_pb2.PruningJob]:
    """Submits jobs, kills the server at random moments, and lets the last one finish; returns the jobs."""
    chance = random.Random(20)
    flags = ("--cpu-slots", "3", "--max-attempts", "8")
    server = RunningServer(data_dir, *flags, program=program).start()
    try:
        made = submit_all(server, files, jobs, *behaviours)
        for _ in range(kills):
            time.sleep(chance.uniform(*pause))
            server.kill()
            wait_until(lambda: command_lines(f"{data_dir}/") == {}, 10.0, "the end of the dead server's workers")
            server.start()
        with caller(server) as call:
            wait_until(lambda: all(job.state in TERMINAL for job in call.list()), 200.0, "every job's end")
            found = call.list()
            assert {job.job_id for job in found} == made
            for job in found:
                check_history(call, job)
    finally:
        assert server.stop() == 0
    assert command_lines(f"{data_dir}/") == {}
    assert not [path for path in (data_dir / "jobs").rglob("*") if path.is_file()]
    return found


@pytest.mark.slow
def test_twenty_jobs_survive_many_kills_of_the_server(tmp_path: Path, files: Path) -> None:
    found = crash_and_recover(
        tmp_path / "data", files, "slow=0.2", jobs=JOBS, kills=6, pause=(0.0, 1.2), program=standin_server.PROGRAM
    )
    # Only kills cost attempts here, and there are more attempts than kills.
    assert [job.state for job in found] == [pruning_job_pb2.JOB_STATE_SUCCEEDED] * JOBS
    assert max(job.attempt for job in found) > 1


@pytest.mark.slow
def test_real_workers_die_with_their_server_and_their_jobs_go_on(tmp_path: Path, files: Path) -> None:
    found = crash_and_recover(
        tmp_path / "data", files, jobs=3, kills=2, pause=(1.0, 6.0), program=("-m", "pruning_server")
    )
    assert [job.state for job in found] == [pruning_job_pb2.JOB_STATE_SUCCEEDED] * 3


def test_a_job_whose_attempts_are_spent_by_crashes_fails_and_says_why(tmp_path: Path, files: Path) -> None:
    data_dir = tmp_path / "data"
    server = RunningServer(data_dir, "--max-attempts", "1", program=standin_server.PROGRAM)
    with server, caller(server) as call:
        model = call.upload(files / "model.pt", artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT)
        data = call.upload(files / "data.npz", artifact_pb2.ARTIFACT_KIND_DATASET)
        call.submit("request", model, data, 0, "slow=60")
        wait_until(lambda: call.list()[0].state == pruning_job_pb2.JOB_STATE_RUNNING, what="the job's start")
        server.kill()
    with server, caller(server) as call:
        wait_until(lambda: call.list()[0].state in TERMINAL, 30.0, "the job's end")
        [job] = call.list()
        check_history(call, job)
    assert job.state == pruning_job_pb2.JOB_STATE_FAILED
    assert job.failure.reason == "WORKER_LOST"


def test_an_orderly_stop_costs_no_attempt(tmp_path: Path, files: Path) -> None:
    data_dir = tmp_path / "data"
    server = RunningServer(
        data_dir, "--max-attempts", "1", "--cpu-slots", "3", "--drain-timeout", "0", program=standin_server.PROGRAM
    )
    with server:
        made = submit_all(server, files, 6, "slow=0.5")
        assert server.stop() == 0
    assert command_lines(f"{data_dir}/") == {}
    with server, caller(server) as call:
        wait_until(lambda: all(job.state in TERMINAL for job in call.list()), 60.0, "every job's end")
        states = {job.job_id: job.state for job in call.list()}
    assert states == dict.fromkeys(made, pruning_job_pb2.JOB_STATE_SUCCEEDED)
