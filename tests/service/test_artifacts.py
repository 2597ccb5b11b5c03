"""Files over the wire: whole, resumed, cut, checked, and never more than a message of them in memory."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import google_crc32c
import grpc
import pytest

from helpers.grpc_world import GrpcWorld, messages
from helpers.processes import wait_until
from pruning_api.v1 import artifact_pb2
from pruning_api.v1 import artifact_service_pb2 as api
from pruning_server.service.server import CallLimits
from pruning_server.spec.artifacts import ArtifactKind

ACTIVE, PENDING = artifact_pb2.ARTIFACT_STATE_ACTIVE, artifact_pb2.ARTIFACT_STATE_PENDING
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MIB = 2**20
CONTENT = random.Random(0).randbytes(3 * MIB + 17)


def read(world: GrpcWorld, artifact_id: str, **fields: int) -> list[api.ReadArtifactResponse]:
    return list(world.artifacts.ReadArtifact(api.ReadArtifactRequest(artifact_id=artifact_id, **fields), timeout=20))


def get(world: GrpcWorld, artifact_id: str) -> artifact_pb2.Artifact:
    return world.artifacts.GetArtifact(api.GetArtifactRequest(artifact_id=artifact_id), timeout=10).artifact


def write(world: GrpcWorld, requests: Iterator[api.WriteArtifactRequest]) -> artifact_pb2.Artifact:
    return world.artifacts.WriteArtifact(requests, timeout=20).artifact


def test_up_and_down(world: GrpcWorld) -> None:
    created = world.create(CONTENT)
    assert (created.state, created.committed_size_bytes, created.display_name) == (PENDING, 0, "model.pt")
    written = write(world, messages(created.artifact_id, CONTENT))
    assert (written.state, written.committed_size_bytes) == (ACTIVE, len(CONTENT))
    parts = read(world, created.artifact_id)
    assert b"".join(part.data for part in parts) == CONTENT
    assert [len(part.data) for part in parts] == [MIB, MIB, MIB, 17]
    assert [part.offset for part in parts] == [0, MIB, 2 * MIB, 3 * MIB]
    assert all(google_crc32c.value(part.data) == part.crc32c for part in parts)
    assert parts[0].artifact.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert not any(part.HasField("artifact") for part in parts[1:])
    assert world.create(CONTENT).state == ACTIVE


@pytest.mark.parametrize("seed", range(3))
def test_an_upload_that_is_cut_at_random_continues(seed: int, world: GrpcWorld) -> None:
    chance = random.Random(seed)
    artifact = world.create(CONTENT)
    for _ in range(5):
        cut_at = chance.randrange(artifact.committed_size_bytes, len(CONTENT))
        stream = _cut(messages(artifact.artifact_id, CONTENT, artifact.committed_size_bytes, 100_000), cut_at)
        call = world.artifacts.WriteArtifact.future(stream, timeout=20)
        with suppress(grpc.RpcError):
            call.result()
        wait_until(lambda: not _is_uploading(world), what="the end of the upload")
        artifact = get(world, artifact.artifact_id)
        assert artifact.state == PENDING
    written = write(world, messages(artifact.artifact_id, CONTENT, artifact.committed_size_bytes))
    assert written.state == ACTIVE
    assert b"".join(part.data for part in read(world, artifact.artifact_id)) == CONTENT


def _cut(requests: Iterator[api.WriteArtifactRequest], at: int) -> Iterator[api.WriteArtifactRequest]:
    """Breaks the stream off before the message that goes beyond `at`."""
    for request in requests:
        if request.offset + len(request.data) > at:
            raise ConnectionResetError("the network is gone")
        yield request


def _is_uploading(world: GrpcWorld) -> bool:
    metrics = world.world.metrics
    return sum(c[2] == "WriteArtifact" for c in metrics.of("started")) > sum(
        c[2] == "WriteArtifact" for c in metrics.of("handled")
    )


def test_a_stream_that_ends_early_keeps_what_came(world: GrpcWorld) -> None:
    artifact = world.create(CONTENT)
    half = write(world, messages(artifact.artifact_id, CONTENT[: 2 * MIB], finish=False))
    assert (half.state, half.committed_size_bytes) == (PENDING, 2 * MIB)
    whole = write(world, messages(artifact.artifact_id, CONTENT, 2 * MIB))
    assert whole.state == ACTIVE
    assert world.world.metrics.of("transfer_resumed") == [("upload",)]


def test_a_wrong_offset_says_the_right_one(world: GrpcWorld, refused) -> None:
    artifact = world.create(CONTENT)
    write(world, messages(artifact.artifact_id, CONTENT[:MIB], finish=False))
    with refused(grpc.StatusCode.OUT_OF_RANGE, "WRONG_OFFSET") as caught:
        write(world, messages(artifact.artifact_id, CONTENT))
    assert caught[0].metadata["committed_size_bytes"] == str(MIB)


def test_a_wrong_checksum_of_a_message(world: GrpcWorld, refused) -> None:
    artifact = world.create(CONTENT)
    requests = list(messages(artifact.artifact_id, CONTENT))
    requests[1].crc32c ^= 1
    with refused(grpc.StatusCode.DATA_LOSS, "CHUNK_CHECKSUM_MISMATCH"):
        write(world, iter(requests))
    assert get(world, artifact.artifact_id).committed_size_bytes == MIB
    assert world.world.metrics.of("checksum_failed") == [("upload",)]


def test_a_file_that_is_not_what_was_announced_starts_again(world: GrpcWorld, refused) -> None:
    artifact = world.create(CONTENT)
    with refused(grpc.StatusCode.DATA_LOSS, "CONTENT_MISMATCH"):
        write(world, messages(artifact.artifact_id, CONTENT[:-1] + b"?"))
    assert get(world, artifact.artifact_id).committed_size_bytes == 0
    assert write(world, messages(artifact.artifact_id, CONTENT)).state == ACTIVE


def test_a_message_without_a_checksum_is_taken(world: GrpcWorld) -> None:
    artifact = world.create(b"abc")
    request = api.WriteArtifactRequest(artifact_id=artifact.artifact_id, data=b"abc", finish_write=True)
    assert write(world, iter([request])).state == ACTIVE


def test_messages_that_are_too_large(world: GrpcWorld, refused) -> None:
    artifact = world.create(CONTENT)
    with refused(INVALID, "INVALID_FIELD") as caught:
        write(world, messages(artifact.artifact_id, CONTENT, size=MIB + 1))
    assert "1048576" in caught[0].violations["data"]
    with pytest.raises(grpc.RpcError) as error:
        write(world, iter([api.WriteArtifactRequest(artifact_id=artifact.artifact_id, data=bytes(5 * MIB))]))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_more_bytes_than_announced(world: GrpcWorld, refused) -> None:
    artifact = world.create(CONTENT[:100])
    with refused(INVALID, "INVALID_FIELD"):
        write(world, messages(artifact.artifact_id, CONTENT[:101]))


def test_the_first_message_names_the_artifact(world: GrpcWorld, refused) -> None:
    for requests in ([], [api.WriteArtifactRequest(data=b"x")]):
        with refused(INVALID, "MISSING_FIELD"):
            write(world, iter(requests))
    with refused(grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND"):
        write(world, iter([api.WriteArtifactRequest(artifact_id="0" * 32, data=b"x")]))


def test_a_stream_is_for_one_artifact(world: GrpcWorld, refused) -> None:
    artifact = world.create(CONTENT)
    requests = list(messages(artifact.artifact_id, CONTENT))
    requests[1].artifact_id = "another"
    with refused(INVALID, "INVALID_FIELD"):
        write(world, iter(requests))


def test_two_uploads_of_one_artifact(world: GrpcWorld, refused) -> None:
    artifact = world.create(CONTENT)
    requests = list(messages(artifact.artifact_id, CONTENT))

    def slow() -> Iterator[api.WriteArtifactRequest]:
        yield requests[0]
        wait_until(lambda: attempted, what="the second upload")
        yield from requests[1:]

    attempted: list[bool] = []
    first = world.artifacts.WriteArtifact.future(slow(), timeout=20)
    metrics = world.world.metrics
    wait_until(lambda: metrics.of("message_received"), what="the first message")
    wait_until(lambda: len([c for c in metrics.of("message_received") if c[2] == "WriteArtifact"]) == 1)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_IN_PROGRESS"):
        write(world, messages(artifact.artifact_id, CONTENT))
    attempted.append(True)
    assert first.result().artifact.state == ACTIVE


def test_finishing_twice_is_harmless(world: GrpcWorld) -> None:
    """The answer to the last message may get lost."""
    artifact_id = world.upload(CONTENT)
    again = api.WriteArtifactRequest(artifact_id=artifact_id, offset=len(CONTENT), finish_write=True)
    assert write(world, iter([again])).state == ACTIVE


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(0, "MISSING_FIELD"), (4, "INVALID_FIELD"), (99, "INVALID_FIELD")],
    ids=["unspecified", "report", "unknown"],
)
def test_kinds_that_no_caller_can_send(kind: int, reason: str, world: GrpcWorld, refused) -> None:
    with refused(INVALID, reason) as caught:
        world.create(b"x", kind)
    assert set(caught[0].violations) == {"kind"}


def test_bad_announcements(world: GrpcWorld, refused) -> None:
    good = {"kind": artifact_pb2.ARTIFACT_KIND_DATASET, "size_bytes": 1, "sha256": "0" * 64}
    for change, field in (
        ({"sha256": "0"}, "sha256"),
        ({"sha256": "Z" * 64}, "sha256"),
        ({"size_bytes": 0}, "size_bytes"),
        ({"display_name": "a" * 256}, "display_name"),
        ({"display_name": "a\x1b[31m"}, "display_name"),
    ):
        with refused(INVALID, "INVALID_FIELD") as caught:
            world.artifacts.CreateArtifact(api.CreateArtifactRequest(**(good | change)), timeout=10)
        assert set(caught[0].violations) == {field}
    with refused(INVALID, "ARTIFACT_TOO_LARGE"):
        world.artifacts.CreateArtifact(api.CreateArtifactRequest(**(good | {"size_bytes": 2**40})), timeout=10)
    assert world.world.metrics.of("job_rejected") == [("too_large",)]


@pytest.mark.parametrize(("offset", "limit"), [(0, 1), (5, 0), (MIB - 1, 2), (len(CONTENT) - 1, 100), (3, 2 * MIB)])
def test_parts_of_a_file(offset: int, limit: int, world: GrpcWorld) -> None:
    parts = read(world, world.upload(CONTENT), offset=offset, limit_bytes=limit)
    end = offset + limit if limit else None
    assert b"".join(part.data for part in parts) == CONTENT[offset:end]
    assert parts[0].artifact.size_bytes == len(CONTENT)
    assert parts[0].offset == offset
    assert world.world.metrics.of("transfer_resumed") == ([("download",)] if offset else [])


def test_reading_from_the_end_and_beyond(world: GrpcWorld, refused) -> None:
    artifact_id = world.upload(CONTENT)
    parts = read(world, artifact_id, offset=len(CONTENT))
    assert [(part.data, part.HasField("artifact")) for part in parts] == [(b"", True)]
    with refused(INVALID, "INVALID_FIELD") as caught:
        read(world, artifact_id, offset=len(CONTENT) + 1)
    assert set(caught[0].violations) == {"offset"}
    assert read(world, artifact_id, offset=1, limit_bytes=2**63)[-1].data


def test_reading_what_is_not_whole(world: GrpcWorld, refused) -> None:
    artifact = world.create(CONTENT)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ARTIFACT_NOT_ACTIVE"):
        read(world, artifact.artifact_id)
    with refused(grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND"):
        read(world, "nothing")


def test_a_stored_file_that_got_shorter_is_an_error_in_mid_stream(world: GrpcWorld, refused) -> None:
    artifact_id = world.upload(CONTENT)
    os.truncate(world.world.artifacts.path(artifact_id), MIB + 5)
    received = []
    stream = world.artifacts.ReadArtifact(api.ReadArtifactRequest(artifact_id=artifact_id), timeout=10)
    with refused(grpc.StatusCode.DATA_LOSS, "CONTENT_MISMATCH"):
        received.extend(part.data for part in stream)
    assert b"".join(received) == CONTENT[: MIB + 5]


def test_pages(world: GrpcWorld, refused) -> None:
    ids = [world.upload(bytes([i])) for i in range(5)]
    world.upload(b"data", artifact_pb2.ARTIFACT_KIND_DATASET)
    found, token = [], ""
    while True:
        request = api.ListArtifactsRequest(page_size=2, page_token=token, kind=artifact_pb2.ARTIFACT_KIND_TORCHSCRIPT)
        page = world.artifacts.ListArtifacts(request, timeout=10)
        assert len(page.artifacts) <= 2
        found += [artifact.artifact_id for artifact in page.artifacts]
        token = page.next_page_token
        if not token:
            break
    assert sorted(found) == sorted(ids)
    assert len(world.artifacts.ListArtifacts(api.ListArtifactsRequest(), timeout=10).artifacts) == 6
    with refused(INVALID, "INVALID_PAGE_TOKEN"):
        world.artifacts.ListArtifacts(api.ListArtifactsRequest(page_token="nonsense"), timeout=10)
    with refused(INVALID, "INVALID_FIELD"):
        world.artifacts.ListArtifacts(api.ListArtifactsRequest(kind=99), timeout=10)


def test_a_full_page_of_long_names_fits_a_message(world: GrpcWorld) -> None:
    store = world.world.artifacts
    for index in range(1000):
        store.create("anonymous", ArtifactKind.DATASET, f"{index:064x}", 1, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 255)
    page = world.artifacts.ListArtifacts(api.ListArtifactsRequest(page_size=1000), timeout=20)
    assert len(page.artifacts) == 1000


def test_deleting(world: GrpcWorld, refused) -> None:
    artifact_id = world.upload(CONTENT)
    world.artifacts.DeleteArtifact(api.DeleteArtifactRequest(artifact_id=artifact_id), timeout=10)
    with refused(grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND"):
        get(world, artifact_id)
    job = world.submit()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ARTIFACT_IN_USE"):
        world.artifacts.DeleteArtifact(api.DeleteArtifactRequest(artifact_id=job.spec.model.artifact_id), timeout=10)


def test_what_others_own_is_not_there(world: GrpcWorld, refused) -> None:
    other = world.world.upload(b"of somebody else")
    for call in (lambda: get(world, other.artifact_id), lambda: read(world, other.artifact_id)):
        with refused(grpc.StatusCode.NOT_FOUND, "ARTIFACT_NOT_FOUND"):
            call()
    assert world.create(b"of somebody else").state == PENDING


def test_too_many_transfers_at_a_time(tmp_path: Path, refused) -> None:
    with GrpcWorld(tmp_path / "data", limits=CallLimits(transfers=2)) as world:
        artifact, spec = world.create(CONTENT), world.spec()
        waiting: list[bool] = []

        def held(artifact_id: str) -> Iterator[api.WriteArtifactRequest]:
            yield next(messages(artifact_id, CONTENT, size=10))
            wait_until(lambda: waiting, what="the refusal")

        other = world.create(CONTENT + b"!")
        calls = [world.artifacts.WriteArtifact.future(held(a.artifact_id), timeout=20) for a in (artifact, other)]
        wait_until(lambda: sum(c[2] == "WriteArtifact" for c in world.world.metrics.of("message_received")) == 4)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS") as caught:
            read(world, artifact.artifact_id)
        assert caught[0].retry_after_seconds == 5.0
        world.submit(spec)
        waiting.append(True)
        assert [call.result().artifact.committed_size_bytes for call in calls] == [10, 10]
        world.upload(b"room again")


def test_a_transfer_whose_other_side_is_quiet_is_ended(tmp_path: Path) -> None:
    with GrpcWorld(tmp_path / "data", limits=CallLimits(transfers=1, stall_seconds=0.5)) as world:
        artifact = world.create(CONTENT)
        ended: list[bool] = []

        def quiet() -> Iterator[api.WriteArtifactRequest]:
            yield next(messages(artifact.artifact_id, CONTENT, size=10))
            wait_until(lambda: ended, what="the end of the call")

        call = world.artifacts.WriteArtifact.future(quiet(), timeout=20)
        with pytest.raises(grpc.RpcError, match="CANCELLED"):
            call.result()
        ended.append(True)
        wait_until(lambda: get(world, artifact.artifact_id).committed_size_bytes == 10, what="the suspension")
        unread = world.artifacts.ReadArtifact(api.ReadArtifactRequest(artifact_id=world.upload(bytes(64 * MIB))))
        next(unread)
        ends = world.world.metrics
        wait_until(lambda: any(c[2:4] == ("ReadArtifact", "CANCELLED") for c in ends.of("handled")), what="the end")
        unread.cancel()
        world.upload(b"room again")
