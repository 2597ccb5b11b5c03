"""Who may call, who sees what, and how much of the server one caller gets: over the wire, with real stores."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from helpers.grpc_world import GrpcWorld, Refusal, messages
from helpers.processes import wait_until
from pruning_api.v1 import artifact_pb2, pruning_job_pb2, pruning_job_service_pb2_grpc, spec_pb2
from pruning_api.v1 import artifact_service_pb2 as artifact_api
from pruning_api.v1 import pruning_job_service_pb2 as job_api
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.token_file import TokenFile, add_token, remove_tokens
from pruning_server.jobs.access import Role
from pruning_server.service.server import ROLES, Access, CallLimits

Refused = Callable[[grpc.StatusCode, str], AbstractContextManager[list[Refusal]]]
UNAUTHENTICATED, PERMISSION_DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
NOT_FOUND, EXHAUSTED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED
MODEL, DATASET = artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT, artifact_pb2.ARTIFACT_KIND_DATASET


class Caller:
    """The API as one principal calls it."""

    def __init__(self, world: GrpcWorld, token: str | None) -> None:
        self.world = world
        self.metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def artifacts(self, method: str, request: Any) -> Any:
        return getattr(self.world.artifacts, method)(request, timeout=20, metadata=self.metadata)

    def jobs(self, method: str, request: Any) -> Any:
        return getattr(self.world.jobs, method)(request, timeout=20, metadata=self.metadata)

    def create(self, content: bytes, kind: int = MODEL) -> artifact_pb2.Artifact:
        request = artifact_api.CreateArtifactRequest(
            kind=kind, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), display_name="file"
        )
        return self.artifacts("CreateArtifact", request).artifact

    def upload(self, content: bytes, kind: int = MODEL) -> str:
        artifact = self.create(content, kind)
        if artifact.state != artifact_pb2.ARTIFACT_STATE_ACTIVE:
            self.artifacts("WriteArtifact", messages(artifact.artifact_id, content))
        return artifact.artifact_id

    def spec(self, **fields: Any) -> spec_pb2.PruningSpec:
        return spec_pb2.PruningSpec(
            **{
                "model": spec_pb2.ArtifactSource(artifact_id=self.upload(b"a model")),
                "validation": spec_pb2.ArtifactSource(artifact_id=self.upload(b"a dataset", DATASET)),
                "static": spec_pb2.StaticStrategy(),
                "sparsity": 0.5,
                "device": "cpu",
                **fields,
            }
        )

    def submit(self, request_id: str | None = None, **fields: Any) -> pruning_job_pb2.PruningJob:
        request = job_api.CreatePruningJobRequest(request_id=request_id or str(uuid.uuid4()), spec=self.spec(**fields))
        return self.jobs("CreatePruningJob", request).job

    def list_jobs(self) -> set[str]:
        return {job.job_id for job in self.jobs("ListPruningJobs", job_api.ListPruningJobsRequest()).jobs}

    def list_artifacts(self) -> set[str]:
        found = self.artifacts("ListArtifacts", artifact_api.ListArtifactsRequest()).artifacts
        return {artifact.artifact_id for artifact in found}

    def first_event(self, job_id: str) -> Any:
        return next(iter(self.jobs("WatchPruningJob", job_api.WatchPruningJobRequest(job_id=job_id))))


class Guarded:
    """A server with tokens."""

    def __init__(self, folder: Path, limits: CallLimits | None = None, **access: Any) -> None:
        self.file = folder / "tokens"
        self.tokens = {
            name: add_token(self.file, name, role)
            for name, role in (("alice", Role.SUBMIT), ("bob", Role.SUBMIT), ("operator", Role.ADMIN))
        }
        self.tokens["reader"] = add_token(self.file, "alice", Role.READ)
        book = Access(TokenFile(self.file, SystemClock()), **access)
        self.world = GrpcWorld(folder / "data", access=book, limits=limits)

    def caller(self, name: str | None) -> Caller:
        return Caller(self.world, None if name is None else self.tokens[name])


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    guarded = Guarded(tmp_path)
    with guarded.world:
        yield guarded


# --- who may call -----------------------------------------------------------------------------------------------------


def test_every_method_has_a_role() -> None:
    """A method that somebody adds and forgets here can be called by admins only."""
    methods = {
        f"{service.full_name}/{method.name}"
        for file in (artifact_api.DESCRIPTOR, job_api.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert methods <= set(ROLES)
    assert {name for name, role in ROLES.items() if role is None} == {
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/List",
        "grpc.health.v1.Health/Watch",
    }


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer prn_wrong"),),
        (("authorization", "Bearer "),),
        (("authorization", "Basic YWxpY2U6"),),
        (("authorization", "Bearer a b"),),
        (("x-token", "alice"),),
    ],
)
def test_nobody_gets_in_without_a_token(guarded: Guarded, refused: Refused, metadata: Any) -> None:
    for call, request in (
        (guarded.world.jobs.ListPruningJobs, job_api.ListPruningJobsRequest()),
        (guarded.world.jobs.GetServerInfo, job_api.GetServerInfoRequest()),
        (guarded.world.artifacts.WriteArtifact, iter(())),
    ):
        with refused(UNAUTHENTICATED, "UNAUTHENTICATED"):
            call(request, timeout=20, metadata=metadata)
    with refused(UNAUTHENTICATED, "UNAUTHENTICATED"):
        list(guarded.world.jobs.WatchPruningJob(job_api.WatchPruningJobRequest(job_id="x"), metadata=metadata))


def test_two_tokens_at_once_are_none(guarded: Guarded, refused: Refused) -> None:
    both = tuple(("authorization", f"Bearer {guarded.tokens[name]}") for name in ("alice", "bob"))
    with refused(UNAUTHENTICATED, "UNAUTHENTICATED"):
        guarded.world.jobs.ListPruningJobs(job_api.ListPruningJobsRequest(), metadata=both)


def test_health_is_for_everybody(guarded: Guarded) -> None:
    answer = health_pb2_grpc.HealthStub(guarded.world.channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_reader_reads_only(guarded: Guarded, refused: Refused) -> None:
    """The reader's token is alice's: it sees what she has."""
    alice, reader = guarded.caller("alice"), guarded.caller("reader")
    job_id = alice.submit().job_id
    assert reader.list_jobs() == {job_id}
    assert reader.first_event(job_id).event.snapshot.job_id == job_id
    assert reader.list_artifacts() == alice.list_artifacts()
    for change in (
        lambda: reader.create(b"another model"),
        lambda: reader.jobs("CancelPruningJob", job_api.CancelPruningJobRequest(job_id=job_id)),
        lambda: reader.jobs("DeletePruningJob", job_api.DeletePruningJobRequest(job_id=job_id)),
        lambda: reader.jobs("InspectModel", job_api.InspectModelRequest()),
        lambda: reader.jobs("CreatePruningJob", job_api.CreatePruningJobRequest()),
    ):
        with refused(PERMISSION_DENIED, "PERMISSION_DENIED"):
            change()


def test_an_admin_sees_and_cancels_everybodys_jobs_but_reads_no_files(guarded: Guarded, refused: Refused) -> None:
    alice, bob, operator = (guarded.caller(name) for name in ("alice", "bob", "operator"))
    jobs = {alice.submit().job_id, bob.submit().job_id}
    assert operator.list_jobs() == jobs
    assert operator.list_artifacts() == set()
    with refused(NOT_FOUND, "ARTIFACT_NOT_FOUND"):
        list(operator.artifacts("ReadArtifact", artifact_api.ReadArtifactRequest(artifact_id=alice.upload(b"a model"))))
    for job_id in jobs:
        assert operator.first_event(job_id).event.snapshot.job_id == job_id
        cancelled = operator.jobs("CancelPruningJob", job_api.CancelPruningJobRequest(job_id=job_id)).job
        assert cancelled.state == pruning_job_pb2.JOB_STATE_CANCELLED
        operator.jobs("DeletePruningJob", job_api.DeletePruningJobRequest(job_id=job_id))
    assert alice.list_jobs() == bob.list_jobs() == set()


def test_a_token_that_is_removed_ends_its_streams(guarded: Guarded, refused: Refused) -> None:
    """At the next heartbeat at the latest."""
    alice = guarded.caller("alice")
    stream = iter(alice.jobs("WatchPruningJob", job_api.WatchPruningJobRequest(job_id=alice.submit().job_id)))
    next(stream)
    remove_tokens(guarded.file, "alice")
    with refused(UNAUTHENTICATED, "UNAUTHENTICATED"):
        list(stream)


# --- who sees what ----------------------------------------------------------------------------------------------------


def test_another_principal_neither_sees_nor_guesses_jobs(guarded: Guarded) -> None:
    """Everything that takes a job's id answers alike for another's job and for none."""
    alice, bob = guarded.caller("alice"), guarded.caller("bob")
    job_id, absent = alice.submit().job_id, uuid.uuid4().hex
    assert bob.list_jobs() == set()
    calls: tuple[Callable[[str], Any], ...] = (
        lambda job: bob.jobs("GetPruningJob", job_api.GetPruningJobRequest(job_id=job)),
        lambda job: bob.jobs("CancelPruningJob", job_api.CancelPruningJobRequest(job_id=job)),
        lambda job: bob.jobs("DeletePruningJob", job_api.DeletePruningJobRequest(job_id=job)),
        bob.first_event,
        lambda job: bob.submit(dynamic=spec_pb2.DynamicStrategy(continue_from_job_id=job), static=None),
    )
    for call in calls:
        assert answer(call, job_id) == answer(call, absent)
    assert alice.list_jobs() == {job_id}


def test_another_principal_neither_sees_nor_guesses_artifacts(guarded: Guarded) -> None:
    alice, bob = guarded.caller("alice"), guarded.caller("bob")
    artifact_id, absent = alice.upload(b"a secret model"), uuid.uuid4().hex
    own = bob.upload(b"a model of bob's")
    assert bob.list_artifacts() == {own}

    def source(artifact: str) -> spec_pb2.ArtifactSource:
        return spec_pb2.ArtifactSource(artifact_id=artifact)

    calls: tuple[Callable[[str], Any], ...] = (
        lambda a: bob.artifacts("GetArtifact", artifact_api.GetArtifactRequest(artifact_id=a)),
        lambda a: list(bob.artifacts("ReadArtifact", artifact_api.ReadArtifactRequest(artifact_id=a))),
        lambda a: bob.artifacts("DeleteArtifact", artifact_api.DeleteArtifactRequest(artifact_id=a)),
        lambda a: bob.artifacts("WriteArtifact", messages(a, b"a secret model")),
        lambda a: bob.submit(model=source(a)),
        lambda a: bob.submit(train=source(a)),
        lambda a: bob.jobs("InspectModel", job_api.InspectModelRequest(model=source(a))),
    )
    for call in calls:
        assert answer(call, artifact_id) == answer(call, absent)
    assert artifact_id in alice.list_artifacts()


def test_a_known_hash_is_no_way_to_a_file(guarded: Guarded) -> None:
    """Bob must send every byte of what alice has sent already, as if nobody had."""
    alice, bob = guarded.caller("alice"), guarded.caller("bob")
    content = b"a secret model"
    artifact_id = alice.upload(content)
    announced = bob.create(content)
    assert announced.artifact_id != artifact_id
    assert announced.state == artifact_pb2.ARTIFACT_STATE_PENDING
    assert announced.committed_size_bytes == 0
    # Nor does its size tell: a wrong one is as good as the right one, until the bytes come.
    request = artifact_api.CreateArtifactRequest(
        kind=MODEL, size_bytes=len(content) + 1, sha256=hashlib.sha256(content).hexdigest(), display_name="x"
    )
    assert bob.artifacts("CreateArtifact", request).artifact.state == artifact_pb2.ARTIFACT_STATE_PENDING
    bob.upload(content)
    # What bob deletes is his.
    bob.artifacts("DeleteArtifact", artifact_api.DeleteArtifactRequest(artifact_id=announced.artifact_id))
    (message,) = alice.artifacts("ReadArtifact", artifact_api.ReadArtifactRequest(artifact_id=artifact_id))
    assert message.data == content


def test_what_the_gate_found_for_one_is_found_anew_for_another(guarded: Guarded) -> None:
    """An answer that comes sooner would tell bob that somebody has the same model."""
    alice, bob = guarded.caller("alice"), guarded.caller("bob")
    gate = guarded.world.world.gate
    alice.submit()
    assert gate.checks == 2
    alice.submit()
    assert gate.checks == 2
    bob.submit()
    assert gate.checks == 4


def test_request_ids_are_each_callers_own(guarded: Guarded) -> None:
    alice, bob = guarded.caller("alice"), guarded.caller("bob")
    mine, theirs = alice.submit("the same"), bob.submit("the same", sparsity=0.7)
    assert mine.job_id != theirs.job_id
    assert alice.submit("the same").job_id == mine.job_id


def test_metrics_name_nobody(guarded: Guarded) -> None:
    guarded.caller("alice").submit()
    said = repr(guarded.world.world.metrics.calls)
    started = [arguments for name, arguments in guarded.world.world.metrics.calls if name != "job_completed"]
    assert "alice" not in repr(started), said


# --- how much ---------------------------------------------------------------------------------------------------------


def test_requests_per_second(tmp_path: Path, refused: Refused) -> None:
    guarded = Guarded(tmp_path, requests_per_second=5.0)
    with guarded.world:
        alice, bob = guarded.caller("alice"), guarded.caller("bob")
        with refused(EXHAUSTED, "RATE_LIMITED") as caught:
            for _ in range(200):
                alice.list_jobs()
        assert caught[0].metadata == {"quota": "requests_per_second"}
        assert caught[0].retry_after_seconds is not None
        assert 0 < caught[0].retry_after_seconds <= 0.2
        assert bob.list_jobs() == set(), "each has a bucket of its own"
        wait_until(lambda: answer(lambda _: alice.list_jobs(), "") == set())


def test_one_caller_takes_half_of_the_watches_at_most(tmp_path: Path, refused: Refused) -> None:
    guarded = Guarded(tmp_path, CallLimits(watches=4))
    with guarded.world:
        alice, bob = guarded.caller("alice"), guarded.caller("bob")
        job, other = alice.submit().job_id, bob.submit().job_id
        streams = [iter(alice.jobs("WatchPruningJob", job_api.WatchPruningJobRequest(job_id=job))) for _ in range(2)]
        for stream in streams:
            next(stream)
        with refused(EXHAUSTED, "TOO_MANY_CALLS") as caught:
            alice.first_event(job)
        assert (caught[0].metadata, caught[0].retry_after_seconds) == ({"quota": "watches"}, 10.0)
        assert bob.first_event(other).event.snapshot.job_id == other


def answer(call: Callable[[str], Any], argument: str) -> Any:
    """What the call returns, or everything that its refusal says, with its own argument left out."""
    try:
        return call(argument)
    except grpc.RpcError as error:
        refusal = Refusal(error)
        said = (
            refusal.code,
            refusal.reason,
            refusal.message,
            sorted(refusal.metadata.items()),
            sorted(refusal.violations.items()),
        )
        return repr(said).replace(argument, "ID") if argument else said


# --- streams that nobody reads ----------------------------------------------------------------------------------------


# Else the other side takes megabytes that nobody asked for yet.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024), ("grpc.use_local_subchannel_pool", 1)]


@contextmanager
def unread_watches(world: GrpcWorld, count: int) -> Iterator[list[Any]]:
    """Watches of a job with more to say than fits on the way, which nobody reads: the server's threads stand."""
    job_id = world.submit(world.spec(*(f"{'x' * 400}.{index}" for index in range(400)))).job_id
    with grpc.insecure_channel(world.server.address, NARROW) as channel:
        stub = pruning_job_service_pb2_grpc.PruningJobServiceStub(channel)
        calls = [stub.WatchPruningJob(job_api.WatchPruningJobRequest(job_id=job_id)) for _ in range(count)]
        for call in calls:
            call.initial_metadata()
        yield calls
        for call in calls:
            call.cancel()


def ended_watches(world: GrpcWorld) -> list[str]:
    """The codes with which watches ended."""
    return [call[3] for call in world.world.metrics.of("handled") if call[2] == "WatchPruningJob"]


def test_streams_that_nobody_reads_do_not_keep_a_submission_out(tmp_path: Path, refused: Refused) -> None:
    with GrpcWorld(tmp_path / "data", limits=CallLimits(watches=20)) as world:
        with unread_watches(world, 20):
            job_id = world.submit().job_id
            with refused(EXHAUSTED, "TOO_MANY_CALLS") as caught:
                next(iter(world.watch(job_id)))
            assert caught[0].retry_after_seconds == 10.0
            for _ in range(3):
                assert world.submit().state == pruning_job_pb2.JOB_STATE_QUEUED
            assert not any(call[2] == "WatchPruningJob" for call in world.world.metrics.of("message_sent"))
        wait_until(lambda: len(ended_watches(world)) == 21)
        assert next(iter(world.watch(job_id))).event.snapshot.job_id == job_id


def test_a_watch_that_nobody_reads_gives_its_place_back(tmp_path: Path) -> None:
    """A caller that reads goes on as long as the job does, however little happens."""
    with GrpcWorld(tmp_path / "data", limits=CallLimits(watches=2, stall_seconds=0.5)) as world:
        read = world.watch(world.submit().job_id, timeout=60)
        with unread_watches(world, 1):
            wait_until(lambda: ended_watches(world) == ["CANCELLED"])
        for _ in range(8):
            next(read)


def test_a_download_that_goes_on_at_the_end_is_told(tmp_path: Path, refused: Refused) -> None:
    with GrpcWorld(tmp_path / "data") as world:
        content = bytes(8 * 2**20)
        request = artifact_api.ReadArtifactRequest(artifact_id=world.upload(content))
        stream = iter(world.artifacts.ReadArtifact(request, timeout=60))
        next(stream)
        stopper = threading.Thread(target=world.server.stop, args=(2.0,))
        stopper.start()
        wait_until(world.server._artifacts._stopping.is_set)
        with refused(grpc.StatusCode.UNAVAILABLE, "DRAINING"):
            list(stream)
        stopper.join()
