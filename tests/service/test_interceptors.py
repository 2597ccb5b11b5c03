"""Every call is counted, timed and logged once, however it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from helpers.grpc_world import GrpcWorld, messages
from helpers.job_world import RecordingMetrics
from helpers.processes import wait_until
from pruning_api.v1 import artifact_service_pb2, pruning_job_service_pb2
from pruning_server.errors import NotFoundError, Reason
from pruning_server.service.interceptors import CallInterceptor

ARTIFACTS = "pruning_api.v1.ArtifactService"
JOBS = "pruning_api.v1.PruningJobService"


def handled(world: GrpcWorld, method: str) -> tuple[str, str, str, str, float | None]:
    """What was said at the end of the one call of this method."""
    calls = [call for call in world.world.metrics.of("handled") if call[2] == method]
    assert len(calls) == 1
    return calls[0]


def ended(world: GrpcWorld, method: str) -> None:
    """Waits for the end of a call: a client hears of it before the server has counted it."""
    wait_until(
        lambda: any(call[2] == method for call in world.world.metrics.of("handled")), what=f"the end of {method}"
    )


def counted(world: GrpcWorld, name: str, method: str) -> int:
    return sum(call[2] == method for call in world.world.metrics.of(name))


def test_a_unary_call(world: GrpcWorld) -> None:
    world.create(b"x")
    ended(world, "CreateArtifact")
    kind, service, method, code, seconds = handled(world, "CreateArtifact")
    assert (kind, service, method, code) == ("unary", ARTIFACTS, "CreateArtifact", "OK")
    assert seconds is not None
    assert 0 <= seconds < 10
    for name in ("started", "message_received", "message_sent"):
        assert counted(world, name, "CreateArtifact") == 1


def test_a_refused_call(world: GrpcWorld) -> None:
    with pytest.raises(grpc.RpcError):
        world.jobs.GetPruningJob(pruning_job_service_pb2.GetPruningJobRequest(job_id="none"), timeout=10)
    ended(world, "GetPruningJob")
    assert handled(world, "GetPruningJob")[:4] == ("unary", JOBS, "GetPruningJob", "NOT_FOUND")
    assert counted(world, "message_sent", "GetPruningJob") == 0


def test_streams(world: GrpcWorld) -> None:
    content = bytes(range(256)) * 10
    artifact_id = world.create(content).artifact_id
    world.artifacts.WriteArtifact(messages(artifact_id, content, size=1000), timeout=10)
    list(world.artifacts.ReadArtifact(artifact_service_pb2.ReadArtifactRequest(artifact_id=artifact_id), timeout=10))
    ended(world, "WriteArtifact")
    ended(world, "ReadArtifact")
    assert handled(world, "WriteArtifact")[0] == "client_stream"
    assert (counted(world, "message_received", "WriteArtifact"), counted(world, "message_sent", "WriteArtifact")) == (
        3,
        1,
    )
    kind, _, _, code, seconds = handled(world, "ReadArtifact")
    assert (kind, code) == ("server_stream", "OK")
    assert seconds is not None
    assert counted(world, "message_sent", "ReadArtifact") == 1


def test_a_watch_is_not_timed_and_its_cancelling_is_seen(world: GrpcWorld) -> None:
    watch = world.watch(world.submit().job_id)
    next(watch)
    watch.cancel()
    ended(world, "WatchPruningJob")
    kind, _, _, code, seconds = handled(world, "WatchPruningJob")
    assert (kind, code, seconds) == ("server_stream", "CANCELLED", None)


def test_a_deadline_is_told_from_a_cancelling(world: GrpcWorld) -> None:
    with pytest.raises(grpc.RpcError):
        list(world.watch(world.submit().job_id, timeout=0.5))
    ended(world, "WatchPruningJob")
    assert handled(world, "WatchPruningJob")[3] == "DEADLINE_EXCEEDED"


def test_an_upload_that_is_cut_off(world: GrpcWorld) -> None:
    content = b"0123456789"
    artifact_id = world.create(content).artifact_id
    requests = iter([next(messages(artifact_id, content, size=4))])

    def cut() -> Iterator[artifact_service_pb2.WriteArtifactRequest]:
        yield next(requests)
        wait_until(lambda: counted(world, "message_received", "WriteArtifact") == 1, what="the first message")
        call.cancel()

    call = world.artifacts.WriteArtifact.future(cut(), timeout=10)
    ended(world, "WriteArtifact")
    assert handled(world, "WriteArtifact")[3] == "CANCELLED"


def test_unknown_methods_share_one_name(world: GrpcWorld) -> None:
    for path in ("/pruning_api.v1.ArtifactService/Made", "/made.Up/Method", "/x", "/a/b/c"):
        with pytest.raises(grpc.RpcError) as caught:
            world.channel.unary_unary(path)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    calls = world.world.metrics.of("handled")
    assert calls == [("unary", "other", "other", "UNIMPLEMENTED", None)] * 4
    assert len(world.world.metrics.of("started")) == 4


def test_health_and_reflection_pass(world: GrpcWorld) -> None:
    health = health_pb2_grpc.HealthStub(world.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="unknown"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    ended(world, "Check")
    assert handled(world, "Check")[3] == "NOT_FOUND"
    stub = reflection_pb2_grpc.ServerReflectionStub(world.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=10)))
    names = {service.name for service in answer.list_services_response.service}
    assert {ARTIFACTS, JOBS, "grpc.health.v1.Health"} <= names


def test_one_line_is_logged_per_change_and_no_payload(world: GrpcWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pruning_server.service.interceptors")
    world.create(b"x", name="secret-name.pt")
    with pytest.raises(grpc.RpcError):
        world.artifacts.DeleteArtifact(artifact_service_pb2.DeleteArtifactRequest(artifact_id="none"), timeout=10)
    world.artifacts.ListArtifacts(artifact_service_pb2.ListArtifactsRequest(), timeout=10)
    ended(world, "ListArtifacts")
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("interceptors")]
    assert len(lines) == 2
    assert "ArtifactService/CreateArtifact OK" in lines[0]
    assert "ArtifactService/DeleteArtifact NOT_FOUND ARTIFACT_NOT_FOUND" in lines[1]
    assert "secret" not in "".join(lines)


def test_a_status_that_the_method_set_itself_is_kept() -> None:
    metrics = RecordingMetrics()
    server = grpc.server(futures.ThreadPoolExecutor(1), interceptors=[CallInterceptor(metrics, lambda: 0.0)])

    def aborts(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.ABORTED, "by itself")

    def stops(request: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from request
        raise NotFoundError(Reason.JOB_NOT_FOUND, "gone")

    handlers = {
        "Aborts": grpc.unary_unary_rpc_method_handler(aborts),
        "Stops": grpc.stream_stream_rpc_method_handler(stops),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Service/Aborts")(b"", timeout=10)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "by itself")
        received = []
        with pytest.raises(grpc.RpcError) as caught:
            received.extend(channel.stream_stream("/test.Service/Stops")(iter([b"1", b"2"]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    server.stop(None).wait()
    assert {(call[0], call[2], call[3]) for call in metrics.of("handled")} == {
        ("unary", "Aborts", "ABORTED"),
        ("bidi_stream", "Stops", "NOT_FOUND"),
    }
