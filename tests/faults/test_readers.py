"""Callers who do not read, and sockets that say nothing: others are served, and the server stops when it is told to."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import grpc
import pytest

from helpers import standin_server
from helpers.processes import wait_until
from helpers.running_server import RunningServer
from helpers.stores import random_bytes
from pruning_api.v1 import artifact_pb2, pruning_job_service_pb2_grpc
from pruning_api.v1 import artifact_service_pb2 as files
from pruning_api.v1 import pruning_job_service_pb2 as jobs
from pruning_api.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from pruning_client import ArtifactKind, PruningClient

# Else this side takes megabytes that nobody asked for yet, and the server's threads never stand.
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024), ("grpc.use_local_subchannel_pool", 1)]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# A settings frame that promises more than comes; garbage; nothing at all.
BEGINNINGS = (b"", PREFACE[:10], PREFACE, PREFACE + b"\x00\x40\x00\x04\x00\x00\x00\x00\x00", b"GET / HTTP/1.1\r\n")


def ask(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = pruning_job_service_pb2_grpc.PruningJobServiceStub(channel)
        stub.GetServerInfo(jobs.GetServerInfoRequest(), timeout=20)


def test_sockets_that_say_nothing_keep_nobody_out(tmp_path: Path) -> None:
    sockets = []
    with RunningServer(tmp_path / "data", program=standin_server.PROGRAM) as server:
        host, _, port = server.address.rpartition(":")
        for number in range(60):
            sockets.append(socket.create_connection((host, int(port)), timeout=10))
            sockets[-1].sendall(BEGINNINGS[number % len(BEGINNINGS)])
        ask(server.address)
        assert server.stop() == 0
    for one in sockets:
        one.close()


def test_readers_who_never_read_take_their_own_places_only(tmp_path: Path) -> None:
    flags = ("--max-transfers", "2", "--max-watches", "2")
    (tmp_path / "big.npz").write_bytes(random_bytes(1, 8_000_000))
    with RunningServer(tmp_path / "data", *flags, program=standin_server.PROGRAM) as server:
        with PruningClient(server.address) as client:
            artifact_id = client.upload_artifact(tmp_path / "big.npz", ArtifactKind.DATASET).artifact_id
        channel = grpc.insecure_channel(server.address, NARROW)
        stub, request = ArtifactServiceStub(channel), files.ReadArtifactRequest(artifact_id=artifact_id)
        stuck = [stub.ReadArtifact(request) for _ in range(2)]
        begun = [len(next(call).data) for call in stuck]
        with grpc.insecure_channel(server.address) as other:
            with pytest.raises(grpc.RpcError) as refused:
                list(ArtifactServiceStub(other).ReadArtifact(request, timeout=20))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            announced = ArtifactServiceStub(other).CreateArtifact(
                files.CreateArtifactRequest(kind=artifact_pb2.ARTIFACT_KIND_DATASET, size_bytes=5, sha256="0" * 64),
                timeout=20,
            )
            assert announced.artifact.artifact_id
        ask(server.address)
        # One of them was only slow, and gets the rest.
        assert begun[1] + sum(len(answer.data) for answer in stuck.pop()) == 8_000_000
        assert server.stop() == 0
        for call in stuck:
            call.cancel()
        channel.close()


def test_an_upload_that_falls_silent_holds_its_own_place_and_its_bytes(tmp_path: Path) -> None:
    content = random_bytes(2, 100_000)
    with RunningServer(tmp_path / "data", "--max-transfers", "1", program=standin_server.PROGRAM) as server:
        (tmp_path / "data.npz").write_bytes(content)
        ask(server.address)
        with grpc.insecure_channel(server.address) as channel:
            stub, is_over = ArtifactServiceStub(channel), threading.Event()
            sha256 = hashlib.sha256(content).hexdigest()
            announcement = files.CreateArtifactRequest(
                kind=artifact_pb2.ARTIFACT_KIND_DATASET, size_bytes=len(content), sha256=sha256
            )
            artifact_id = stub.CreateArtifact(announcement, timeout=20).artifact.artifact_id
            with pytest.raises(grpc.RpcError) as cut:
                stub.WriteArtifact(half_and_then_nothing(artifact_id, content, is_over), timeout=2)
            is_over.set()
            assert cut.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # What arrived is kept as soon as the server sees that the call has ended.
            asked = files.GetArtifactRequest(artifact_id=artifact_id)
            wait_until(lambda: stub.GetArtifact(asked, timeout=20).artifact.committed_size_bytes == 50_000, 20.0)
        with PruningClient(server.address) as client:
            artifact = client.upload_artifact(tmp_path / "data.npz", ArtifactKind.DATASET)
            assert artifact.artifact_id == artifact_id
            client.download_artifact(artifact_id, tmp_path / "back.npz")
        assert (tmp_path / "back.npz").read_bytes() == content


def half_and_then_nothing(
    artifact_id: str, content: bytes, is_over: threading.Event
) -> Iterator[files.WriteArtifactRequest]:
    data = content[:50_000]
    yield files.WriteArtifactRequest(artifact_id=artifact_id, offset=0, data=data, crc32c=google_crc32c.value(data))
    is_over.wait(30)
