"""The client against the real server, so that the scripted one stays true: transfers, lists and refusals."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.cutting_proxy import CuttingProxy
from helpers.models import mlp, save_scripted, table_data
from helpers.running_server import RunningServer
from pruning_client import (
    AlreadyExistsError,
    ArtifactKind,
    ArtifactState,
    BadInputError,
    Conditional,
    Dynamic,
    Granularity,
    InvalidRequestError,
    JobState,
    LatencyRatio,
    NotFoundError,
    PruningClient,
    PruningClientError,
    RetryPolicy,
    Scope,
    Sparsity,
    Static,
    Submission,
)

MIB = 1 << 20
# The real server needs a moment to notice that a connection is gone.
PATIENT = RetryPolicy(attempts=5, initial_seconds=0.05, max_seconds=0.5, outage_seconds=30.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on an empty data folder."""
    with RunningServer(tmp_path_factory.mktemp("server") / "data") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[PruningClient]:
    """A client of it."""
    with PruningClient(server.address, retry_policy=PATIENT) as connected:
        yield connected


def random_file(path: Path, size_bytes: int, seed: int) -> Path:
    """Bytes that no other test sends."""
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return path


@pytest.mark.parametrize("size_bytes", [1, MIB, 3 * MIB + 5])
def test_up_and_down_again(client: PruningClient, tmp_path: Path, size_bytes: int) -> None:
    source = random_file(tmp_path / "up.bin", size_bytes, seed=size_bytes)
    artifact = client.upload_artifact(source, ArtifactKind.TORCHSCRIPT)
    assert (artifact.state, artifact.size_bytes) == (ArtifactState.ACTIVE, size_bytes)
    assert client.get_artifact(artifact.artifact_id).sha256 == artifact.sha256
    client.download_artifact(artifact.artifact_id, tmp_path / "down.bin")
    assert (tmp_path / "down.bin").read_bytes() == source.read_bytes()


def test_the_same_bytes_are_not_sent_twice(client: PruningClient, tmp_path: Path) -> None:
    source = random_file(tmp_path / "up.bin", 2 * MIB, seed=101)
    first = client.upload_artifact(source, ArtifactKind.DATASET)
    seen: list[int] = []
    second = client.upload_artifact(source, ArtifactKind.DATASET, lambda done, _total: seen.append(done))
    assert second.artifact_id == first.artifact_id
    assert seen == [2 * MIB]


@pytest.mark.parametrize("seed", range(2))
def test_cut_both_ways(server: RunningServer, tmp_path: Path, seed: int) -> None:
    source = random_file(tmp_path / "up.bin", 6 * MIB + 77, seed=200 + seed)
    cuts = [random.Random(seed * 10 + i).randrange(500_000, 4 * MIB) for i in range(3)]
    with (
        CuttingProxy(server.address, upload_cuts=cuts, download_cuts=cuts) as proxy,
        PruningClient(proxy.address, retry_policy=PATIENT) as client,
    ):
        artifact = client.upload_artifact(source, ArtifactKind.TORCHSCRIPT)
        client.download_artifact(artifact.artifact_id, tmp_path / "down.bin")
    assert proxy.cuts_done >= 2
    assert (tmp_path / "down.bin").read_bytes() == source.read_bytes()


def test_a_part_is_gone_on_from(client: PruningClient, tmp_path: Path) -> None:
    source = random_file(tmp_path / "up.bin", 3 * MIB, seed=301)
    artifact = client.upload_artifact(source, ArtifactKind.TORCHSCRIPT)
    (tmp_path / "down.bin.part").write_bytes(source.read_bytes()[: MIB + 5])
    seen: list[int] = []
    client.download_artifact(artifact.artifact_id, tmp_path / "down.bin", lambda done, _total: seen.append(done))
    assert seen[0] > MIB + 5
    assert (tmp_path / "down.bin").read_bytes() == source.read_bytes()


def test_artifacts_and_jobs_are_listed_over_pages(client: PruningClient, tmp_path: Path) -> None:
    made = {
        client.upload_artifact(random_file(tmp_path / f"{n}", 100, seed=400 + n), ArtifactKind.LOSS).artifact_id
        for n in range(5)
    }
    listed = [a.artifact_id for a in client.list_artifacts(ArtifactKind.LOSS, page_size=2)]
    assert sorted(listed) == sorted(made)
    client.delete_artifact(listed[0])
    assert len(list(client.list_artifacts(ArtifactKind.LOSS))) == 4
    assert [job for job in client.list(page_size=1) if job.state is JobState.UNKNOWN] == []


def test_what_is_not_there(client: PruningClient, tmp_path: Path) -> None:
    for call in (
        lambda: client.get("0" * 32),
        lambda: client.cancel("0" * 32),
        lambda: client.delete("0" * 32),
        lambda: list(client.watch("0" * 32)),
        lambda: client.download_artifact("0" * 32, tmp_path / "x"),
    ):
        with pytest.raises((NotFoundError, InvalidRequestError)) as caught:
            call()
        assert caught.value.reason.endswith(("NOT_FOUND", "INVALID_FIELD"))


def test_server_info_and_strategies(client: PruningClient) -> None:
    info = client.server_info()
    assert "cpu" in [device.name for device in info.devices]
    assert info.max_artifact_bytes > 0
    assert info.default_timeout_seconds > 0
    static = next(s for s in client.list_strategies() if s.name == "static")
    assert static.available
    assert {"threshold", "sparsity"} <= set(static.targets)
    dynamic = next(s for s in client.list_strategies() if s.name == "dynamic")
    assert dynamic.available
    schedules = {one.name: one for one in dynamic.schedules}
    assert {"cubic", "rigl", "soft", "controller"} <= set(schedules)
    assert Granularity.CHANNEL in schedules["cubic"].granularities
    assert "1710.01878" in schedules["cubic"].source


def test_inspection(client: PruningClient, tmp_path: Path) -> None:
    found = client.inspect(save_scripted(mlp(), tmp_path / "model.pt"))
    assert [(layer.name, layer.parameters, layer.group_indices) for layer in found.layers] == [
        ("0", 8 * 32 + 32, (0,)), ("3", 32 * 3 + 3, (0,)),
    ]  # fmt: skip
    assert [group.channels for group in found.groups] == [32]
    assert [spec.shape for spec in found.inputs] == [(1, 8)]


def test_refusals_name_the_field(client: PruningClient, tmp_path: Path) -> None:
    model = save_scripted(mlp(), tmp_path / "model.pt")
    inputs, targets = table_data(60)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    submission = Submission(model=model, validation=tmp_path / "data.npz", strategy=Static(), target=Sparsity(1.5))
    with pytest.raises(InvalidRequestError) as caught:
        client.submit(submission)
    assert [v.field for v in caught.value.violations] == ["spec.sparsity"]
    with pytest.raises(BadInputError):
        client.submit(Submission(model=tmp_path / "no.pt", validation=tmp_path / "data.npz", strategy=Static()))


def test_a_job_that_is_cancelled_and_deleted(client: PruningClient, tmp_path: Path) -> None:
    model = save_scripted(mlp(), tmp_path / "model.pt")
    inputs, targets = table_data(60)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    submission = Submission(
        model=model, validation=tmp_path / "data.npz", strategy=Static(), target=Sparsity(0.5), epochs=1000
    )
    request = {"request_id": "3e9d9a52-3a0e-4b8e-9e5e-111111111111", "labels": {"made-by": "test"}}
    job = client.submit(submission, **request)
    assert client.submit(submission, **request).job_id == job.job_id
    with pytest.raises(AlreadyExistsError):
        client.submit(dataclasses.replace(submission, seed=1), **request)
    assert [j.job_id for j in client.list(labels={"made-by": "test"})] == [job.job_id]
    with pytest.raises(PruningClientError) as caught:
        client.delete(job.job_id)
    assert caught.value.reason == "JOB_NOT_TERMINAL"
    client.cancel(job.job_id)
    assert client.wait(job.job_id, timeout_seconds=60).state is JobState.CANCELLED
    again = client.get(job.job_id)
    assert (again.spec.target, again.spec.epochs) == (Sparsity(0.5), 1000)
    client.delete(job.job_id)
    with pytest.raises(NotFoundError):
        client.get(job.job_id)


def test_what_a_request_asks_for_is_checked_before_anything_is_sent(client: PruningClient, tmp_path: Path) -> None:
    good = Submission(
        model=tmp_path / "not there.pt", validation=tmp_path / "nor this.npz", strategy=Static(), target=Sparsity(0.5)
    )
    before = len(list(client.list_artifacts()))
    client.check(good)
    for strategy, target, text in (
        (Static(scope=Scope.SENSITIVITY), Sparsity(0.5), "it is for granularity channel or head"),
        (Static(criterion="nonsense"), Sparsity(0.5), "no criterion 'nonsense'"),
        (
            Dynamic(granularity=Granularity.CHANNEL, schedule="nonsense"),
            Sparsity(0.5),
            "no schedule 'nonsense'; use one of",
        ),
        (
            Dynamic(granularity=Granularity.CHANNEL),
            LatencyRatio(0.5),
            "use the static strategy with granularity channel",
        ),
        (Conditional(condition="abs_weight < nonsense"), None, "nonsense"),
    ):
        with pytest.raises(PruningClientError, match=text):
            client.check(dataclasses.replace(good, strategy=strategy, target=target))
    assert len(list(client.list_artifacts())) == before
