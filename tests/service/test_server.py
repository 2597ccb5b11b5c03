"""The server as a whole: its address, TLS, health, and its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from helpers.certificates import Pair, self_signed
from helpers.grpc_world import GrpcWorld, messages
from helpers.processes import wait_until
from pruning_api.v1 import artifact_service_pb2, artifact_service_pb2_grpc
from pruning_server.errors import CapacityError, InvalidRequestError
from pruning_server.jobs.access import TlsFiles
from pruning_server.service.limits import CallGroup
from pruning_server.service.server import SERVICES, CallLimits

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_of(channel: grpc.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def list_artifacts(channel: grpc.Channel) -> None:
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
    stub.ListArtifacts(artifact_service_pb2.ListArtifactsRequest(), timeout=10)


def test_port_0_is_any_free_port(world: GrpcWorld) -> None:
    host, _, port = world.server.address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_a_taken_port_is_an_error_that_says_so(world: GrpcWorld, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="cannot listen on"):
        GrpcWorld(tmp_path / "other", address=world.server.address)


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no address of this machine"):
        GrpcWorld(tmp_path / "data", address="192.0.2.1:0")


def test_a_socket_file(tmp_path: Path) -> None:
    with GrpcWorld(tmp_path / "data", address=f"unix:{tmp_path}/socket") as world:
        assert world.server.address == f"unix:{tmp_path}/socket"
        world.upload(b"x")


def test_health_follows_the_servers_life(world: GrpcWorld) -> None:
    for service in ("", *SERVICES):
        assert health_of(world.channel, service) == SERVING
    world.server.stop_welcoming()
    for service in ("", *SERVICES):
        assert health_of(world.channel, service) == NOT_SERVING
    list_artifacts(world.channel)


def test_a_call_that_is_going_on_may_end(tmp_path: Path) -> None:
    world = GrpcWorld(tmp_path / "data")
    with world:
        artifact_id = world.create(b"0123456789").artifact_id
        stopping = threading.Event()

        def slow() -> Iterator[artifact_service_pb2.WriteArtifactRequest]:
            first, second = messages(artifact_id, b"0123456789", size=5)
            yield first
            stopping.wait(10)
            yield second

        call = world.artifacts.WriteArtifact.future(slow(), timeout=20)
        wait_until(lambda: any(c[2] == "WriteArtifact" for c in world.world.metrics.of("message_received")))
        ended: list[bool] = []
        stopper = threading.Thread(target=lambda: ended.append(world.server.stop(10.0)))
        stopper.start()
        stopping.set()
        assert call.result().artifact.committed_size_bytes == 10
        stopper.join(15)
        assert ended == [True]


def test_an_upload_that_outlasts_the_grace_is_kept_for_the_next_server(tmp_path: Path) -> None:
    with GrpcWorld(tmp_path / "data") as world:
        artifact_id = world.create(b"0123456789").artifact_id
        over = threading.Event()

        def endless() -> Iterator[artifact_service_pb2.WriteArtifactRequest]:
            yield next(messages(artifact_id, b"0123456789", size=4))
            over.wait(10)

        call = world.artifacts.WriteArtifact.future(endless(), timeout=20)
        wait_until(lambda: any(c[2] == "WriteArtifact" for c in world.world.metrics.of("message_received")))
        assert world.server.stop(0.3)
        over.set()
        assert call.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    with GrpcWorld(tmp_path / "data") as world:
        request = artifact_service_pb2.GetArtifactRequest(artifact_id=artifact_id)
        assert world.artifacts.GetArtifact(request, timeout=10).artifact.committed_size_bytes == 4


def test_calls_of_limited_kinds_leave_threads_for_others() -> None:
    limits = CallLimits(watches=5, transfers=6, submissions=7)
    assert limits.threads >= 5 + 6 + 7 + 16


def test_a_group_gives_its_places_back() -> None:
    group = CallGroup("tests", 1, retry_after_seconds=3.0)
    for _ in range(3):
        with group.slot("a"), pytest.raises(CapacityError) as caught, group.slot("b"):
            pass
        assert caught.value.retry_after_seconds == 3.0
    with pytest.raises(KeyError), group.slot("a"):
        raise KeyError
    with group.slot("a"):
        pass


def test_one_caller_gets_its_share_of_a_group_only() -> None:
    group = CallGroup("tests", 3, retry_after_seconds=3.0, per_caller=2)
    with group.slot("a"), group.slot("a"):
        with pytest.raises(CapacityError, match="one caller 2") as caught, group.slot("a"):
            pass
        assert (caught.value.quota, caught.value.retry_after_seconds) == ("tests", 3.0)
        with group.slot("b"), pytest.raises(CapacityError, match="3 tests at a time"), group.slot("c"):
            pass
    with group.slot("a"):
        pass


# --- TLS --------------------------------------------------------------------------------------------------------------


def files(pair: Pair, client_ca: Pair | None = None) -> TlsFiles:
    return TlsFiles(
        pair.certificate.read_bytes(),
        pair.key.read_bytes(),
        None if client_ca is None else client_ca.certificate.read_bytes(),
    )


def secure(address: str, server: Pair, client: Pair | None = None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        server.certificate.read_bytes(),
        None if client is None else client.key.read_bytes(),
        None if client is None else client.certificate.read_bytes(),
    )
    return grpc.secure_channel(address, credentials)


def test_tls(tmp_path: Path) -> None:
    pair, other = self_signed(tmp_path, "server"), self_signed(tmp_path, "other")
    with GrpcWorld(tmp_path / "data", tls=files(pair)) as world:
        with secure(world.server.address, pair) as channel:
            list_artifacts(channel)
        with secure(world.server.address, other) as channel, pytest.raises(grpc.RpcError) as caught:
            list_artifacts(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with grpc.insecure_channel(world.server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            list_artifacts(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls(tmp_path: Path) -> None:
    pair, friend, stranger = (self_signed(tmp_path, name) for name in ("server", "friend", "stranger"))
    with GrpcWorld(tmp_path / "data", tls=files(pair, friend)) as world:
        with secure(world.server.address, pair, friend) as channel:
            list_artifacts(channel)
        for client in (None, stranger):
            with secure(world.server.address, pair, client) as channel, pytest.raises(grpc.RpcError) as caught:
                list_artifacts(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
