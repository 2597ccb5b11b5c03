"""Requests that name files by URI, over the wire: fetched, checked and judged as if they had been sent."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest

from helpers.grpc_world import GrpcWorld, Refusal
from helpers.job_world import World
from pruning_api.v1 import pruning_job_pb2, spec_pb2
from pruning_api.v1 import pruning_job_service_pb2 as api
from pruning_server.adapters.uris import UriFetcher, UriPolicy
from pruning_server.jobs.access import ANONYMOUS_NAME
from pruning_server.jobs.fetching import UriResolver
from pruning_server.jobs.ports import CancelToken, Inspector
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.inspection import Inspection, InspectionRequest

Refused = Callable[[grpc.StatusCode, str], AbstractContextManager[list[Refusal]]]
MODEL, DATA = b"a model by its URI", b"a dataset by its URI"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "net.pt").write_bytes(MODEL)
    (folder / "data.npz").write_bytes(DATA)
    return folder


@pytest.fixture
def world(tmp_path: Path, folder: Path) -> Iterator[GrpcWorld]:
    def resolver(world: World) -> UriResolver:
        policy = UriPolicy((f"file://{folder}/",))
        return UriResolver(UriFetcher(world.artifacts, world.metrics, policy, deadline_seconds=10.0), 2)

    with GrpcWorld(tmp_path / "data", uris=resolver, inspect=Echo) as world:
        yield world


class Echo:
    """Inspects nothing; remembers what it was asked."""

    def __init__(self, _world: World) -> None:
        self.asked: list[InspectionRequest] = []

    def inspect(self, owner: str, request: InspectionRequest, cancelled: CancelToken) -> Inspection:
        assert owner
        assert not cancelled.is_set()
        self.asked.append(request)
        assert request.model.artifact_id
        assert request.model.uri is None
        return Inspection(inputs=(), layers=(), groups=(), frozen=())


def source(folder: Path, name: str, content: bytes) -> spec_pb2.ArtifactSource:
    return spec_pb2.ArtifactSource(uri=f"file://{folder}/{name}", sha256=hashlib.sha256(content).hexdigest().upper())


def submit(world: GrpcWorld, folder: Path, request_id: str = "", **fields: object) -> pruning_job_pb2.PruningJob:
    spec = world.spec(model=source(folder, "net.pt", MODEL), validation=source(folder, "data.npz", DATA))
    return world.submit(spec, request_id=request_id or str(uuid.uuid4()), **fields)


def test_a_job_by_uri_is_one_by_artifact(world: GrpcWorld, folder: Path) -> None:
    job = submit(world, folder)
    model = world.world.artifacts.get(ANONYMOUS_NAME, job.spec.model.artifact_id)
    assert (model.kind, model.sha256) == (ArtifactKind.TORCHSCRIPT, hashlib.sha256(MODEL).hexdigest())
    assert job.spec.model.uri == ""
    assert job.spec.validation.artifact_id
    assert world.world.metrics.of("job_submitted") == [("static",)]
    stored = b"".join(path.read_bytes() for path in (folder.parent / "data").glob("jobs.sqlite3*"))
    assert b"net.pt" in stored, "its name stays"
    assert str(folder).encode() not in stored, "the URI does not"


def test_a_repeated_request_is_the_same_job_even_if_the_file_is_gone(world: GrpcWorld, folder: Path) -> None:
    job = submit(world, folder, "r")
    (folder / "net.pt").unlink()
    assert submit(world, folder, "r").job_id == job.job_id


def test_a_check_fetches_too_and_makes_no_job(world: GrpcWorld, folder: Path, refused: Refused) -> None:
    assert submit(world, folder, validate_only=True).job_id == ""
    (folder / "net.pt").write_bytes(b"another")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "CONTENT_MISMATCH") as caught:
        world.submit(world.spec(model=source(folder, "net.pt", b"not stored before")), validate_only=True)
    assert set(caught[0].violations) == {"spec.model"}


def test_an_inspection_by_uri(world: GrpcWorld, folder: Path) -> None:
    request = api.InspectModelRequest(model=source(folder, "net.pt", MODEL), inputs=[api.TensorSpec(shape=[1])])
    world.jobs.InspectModel(request, timeout=20)


@pytest.mark.parametrize(
    ("name", "sha256", "reason", "field"),
    [
        ("net.pt", "", "MISSING_FIELD", "spec.train.sha256"),
        ("net.pt", "xyz", "INVALID_FIELD", "spec.train.sha256"),
        ("../net.pt", "0" * 64, "URI_DENIED", "spec.train"),
        ("missing.pt", "0" * 64, "URI_UNREADABLE", "spec.train"),
    ],
)
def test_what_is_wrong_is_said_by_field(
    world: GrpcWorld, folder: Path, refused: Refused, name: str, sha256: str, reason: str, field: str
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, reason) as caught:
        world.submit(world.spec(train=spec_pb2.ArtifactSource(uri=f"file://{folder}/{name}", sha256=sha256)))
    assert set(caught[0].violations) == {field}
    assert world.world.metrics.of("job_rejected") == ([("uri_denied",)] if reason == "URI_DENIED" else [])


def test_a_resolver_without_places_says_when_to_come_again(tmp_path: Path, folder: Path, refused: Refused) -> None:
    held: list[UriResolver] = []

    def resolver(world: World) -> UriResolver:
        policy = UriPolicy((f"file://{folder}/",))
        held.append(UriResolver(UriFetcher(world.artifacts, world.metrics, policy, deadline_seconds=10.0), 1))
        return held[0]

    def inspector(_world: World) -> Inspector:
        return Echo(_world)

    with GrpcWorld(tmp_path / "data", uris=resolver, inspect=inspector) as world:
        assert held[0]._places.acquire(blocking=False)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS") as caught:
            submit(world, folder)
        assert caught[0].retry_after_seconds == 10.0
        world.submit()  # what needs no fetching goes on
