"""Uploads and downloads: whole and verified or not at all, on from where they were cut."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from helpers.cutting_proxy import CuttingProxy
from helpers.fake_artifacts import MIB, status
from helpers.fake_server import FakeServer
from helpers.quick_client import QUICK
from pruning_api.v1.artifact_pb2 import ARTIFACT_STATE_ACTIVE
from pruning_api.v1.artifact_service_pb2 import WriteArtifactRequest
from pruning_client import (
    ArtifactKind,
    ArtifactState,
    BadInputError,
    DataLossError,
    InternalError,
    NotFoundError,
    PruningClient,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
)

SIZE = 5 * MIB + 12345


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of several messages, the last one short."""
    path = tmp_path / "source.bin"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return path


def sha256(data: bytes) -> str:
    """Of the data, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def stored(server: FakeServer) -> bytes:
    """The bytes of the only artifact."""
    (content,) = server.artifacts.content.values()
    return bytes(content)


@pytest.mark.parametrize("size", [1, MIB - 1, MIB, MIB + 1, 3 * MIB, SIZE])
def test_an_upload_arrives_whole(client: PruningClient, server: FakeServer, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(random.Random(size).randbytes(size))
    artifact = client.upload_artifact(path, ArtifactKind.TORCHSCRIPT)
    assert artifact.state is ArtifactState.ACTIVE
    assert artifact.kind is ArtifactKind.TORCHSCRIPT
    assert (artifact.size_bytes, artifact.sha256) == (size, sha256(path.read_bytes()))
    assert stored(server) == path.read_bytes()


def test_messages_hold_at_most_a_mebibyte_and_every_byte_once(
    client: PruningClient, server: FakeServer, source: Path
) -> None:
    seen: list[tuple[int, int, bool]] = []
    server.artifacts.on_write = lambda r: seen.append((r.offset, len(r.data), r.finish_write))
    client.upload_artifact(source, ArtifactKind.DATASET)
    assert seen == [(o, min(MIB, SIZE - o), o + MIB >= SIZE) for o in range(0, SIZE, MIB)]


def test_what_the_server_has_is_not_sent_again(client: PruningClient, server: FakeServer, source: Path) -> None:
    first = client.upload_artifact(source, ArtifactKind.DATASET)
    seen: list[tuple[int, int]] = []
    second = client.upload_artifact(source, ArtifactKind.DATASET, lambda done, total: seen.append((done, total)))
    assert second.artifact_id == first.artifact_id
    assert server.script.count("WriteArtifact") == 1
    assert seen == [(SIZE, SIZE)]


def test_the_name_that_people_see_is_printable(client: PruningClient, source: Path, tmp_path: Path) -> None:
    odd = tmp_path / f"a\nb\x1b[31m{'x' * 200}.pt"
    source.rename(odd)
    name = client.upload_artifact(odd, ArtifactKind.DATASET).display_name
    assert name.isprintable()
    assert len(name) <= 200


def test_progress_starts_at_zero_and_ends_at_the_size(client: PruningClient, source: Path) -> None:
    seen: list[int] = []
    client.upload_artifact(source, ArtifactKind.DATASET, lambda done, _total: seen.append(done))
    assert seen == [*range(0, SIZE, MIB), SIZE]


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_upload_goes_on_where_the_server_stands(server: FakeServer, source: Path, seed: int) -> None:
    cuts = [random.Random(seed * 10 + i).randrange(100_000, 3 * MIB) for i in range(3)]
    offsets: list[int] = []
    server.artifacts.on_write = lambda r: offsets.append(r.offset)
    with (
        CuttingProxy(server.address, upload_cuts=cuts) as proxy,
        PruningClient(proxy.address, retry_policy=QUICK) as client,
    ):
        artifact = client.upload_artifact(source, ArtifactKind.TORCHSCRIPT)
    assert artifact.sha256 == sha256(stored(server)) == sha256(source.read_bytes())
    assert proxy.cuts_done >= 1
    # The server refuses a byte twice, so a complete file proves that each was sent on from the right place.
    assert sorted(set(offsets)) == list(range(0, SIZE, MIB))


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_download_goes_on_from_its_part(server: FakeServer, source: Path, tmp_path: Path, seed: int) -> None:
    artifact_id = server.artifacts.put(source.read_bytes())
    cuts = [random.Random(seed * 10 + i).randrange(MIB, 3 * MIB) for i in range(3)]
    with (
        CuttingProxy(server.address, download_cuts=cuts) as proxy,
        PruningClient(proxy.address, retry_policy=QUICK) as client,
    ):
        client.download_artifact(artifact_id, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == source.read_bytes()
    assert not (tmp_path / "out.bin.part").exists()
    assert proxy.cuts_done >= 1
    reads = [request.offset for name, request in server.script.calls if name == "ReadArtifact"]
    assert reads == sorted(reads)
    assert max(reads) > 0


def test_a_server_that_restarts_in_an_upload_is_waited_for(server: FakeServer, source: Path) -> None:
    restarts: list[threading.Thread] = []
    is_down = threading.Event()

    def restart() -> None:
        server.stop()
        is_down.set()
        server.start()

    def restart_once(request: WriteArtifactRequest) -> None:
        if request.offset == 2 * MIB and not restarts:
            restarts.append(threading.Thread(target=restart))
            restarts[0].start()
            assert is_down.wait(10)

    server.artifacts.on_write = restart_once
    with PruningClient(server.address, retry_policy=QUICK) as client:
        artifact = client.upload_artifact(source, ArtifactKind.DATASET)
    restarts[0].join()
    assert artifact.state is ArtifactState.ACTIVE
    assert stored(server) == source.read_bytes()


def resume_errors() -> dict[str, grpc.Status]:
    """Ends of a stream after which an upload goes on."""
    code = grpc.StatusCode
    return {
        "unavailable": status(code.UNAVAILABLE, "DRAINING", "draining"),
        "wrong offset": status(code.OUT_OF_RANGE, "WRONG_OFFSET", "elsewhere", metadata={"committed_size_bytes": "0"}),
        "damaged message": status(code.DATA_LOSS, "CHUNK_CHECKSUM_MISMATCH", "damaged"),
        "stale stream": status(code.FAILED_PRECONDITION, "UPLOAD_IN_PROGRESS", "another stream writes"),
        "stale stream, aborted": status(code.ABORTED, "UPLOAD_IN_PROGRESS", "another stream writes"),
    }


@pytest.mark.parametrize("name", resume_errors())
def test_an_upload_goes_on_after(name: str, client: PruningClient, server: FakeServer, source: Path) -> None:
    server.script.answer("WriteArtifact", resume_errors()[name])
    assert client.upload_artifact(source, ArtifactKind.DATASET).state is ArtifactState.ACTIVE
    assert stored(server) == source.read_bytes()
    assert server.script.count("WriteArtifact") == 2


def test_an_upload_continues_what_an_earlier_process_began(server: FakeServer, source: Path) -> None:
    def break_off(request: WriteArtifactRequest) -> None:
        if request.offset == 2 * MIB:
            raise ConnectionError("as if one side had died")

    server.artifacts.on_write = break_off
    with PruningClient(server.address, retry_policy=QUICK) as first, pytest.raises(InternalError):
        first.upload_artifact(source, ArtifactKind.DATASET)
    assert stored(server) == source.read_bytes()[: 2 * MIB]
    offsets: list[int] = []
    server.artifacts.on_write = lambda r: offsets.append(r.offset)
    with PruningClient(server.address, retry_policy=QUICK) as second:
        second.upload_artifact(source, ArtifactKind.DATASET)
    assert offsets[0] == 2 * MIB
    assert stored(server) == source.read_bytes()


def test_patience_ends(server: FakeServer, source: Path) -> None:
    server.script.answer("WriteArtifact", *[status(grpc.StatusCode.UNAVAILABLE, "DRAINING", "no")] * 10_000)
    policy = RetryPolicy(attempts=3, initial_seconds=0.01, max_seconds=0.02, outage_seconds=0.2)
    with PruningClient(server.address, retry_policy=policy) as client, pytest.raises(UnavailableError, match="no"):
        client.upload_artifact(source, ArtifactKind.DATASET)


def test_a_full_store_is_not_hammered(client: PruningClient, server: FakeServer, source: Path) -> None:
    server.script.answer("CreateArtifact", status(grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL", "disk full"))
    with pytest.raises(ResourceExhaustedError, match="disk full") as caught:
        client.upload_artifact(source, ArtifactKind.DATASET)
    assert caught.value.reason == "STORAGE_FULL"
    assert server.script.count("CreateArtifact") == 1


def unreadable_files() -> dict[str, Callable[[Path], object]]:
    """Name -> makes it."""
    return {
        "missing": lambda path: path,
        "directory": lambda path: path.mkdir(),
        "empty": lambda path: path.touch(),
        "pipe": os.mkfifo,
    }


@pytest.mark.parametrize("name", unreadable_files())
def test_files_that_cannot_be_sent(name: str, client: PruningClient, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    unreadable_files()[name](path)
    with pytest.raises(BadInputError, match=r"bad\.bin"):
        client.upload_artifact(path, ArtifactKind.DATASET)
    assert server.script.calls == []


@pytest.mark.parametrize("change", ["grow", "shrink", "replace"])
def test_a_file_that_changes_meanwhile_is_said_to_have_changed(
    change: str, client: PruningClient, server: FakeServer, source: Path
) -> None:
    data = source.read_bytes()
    changed = {"grow": data + b"x", "shrink": data[: MIB // 2], "replace": data[::-1]}[change]

    def alter(done: int, _total: int) -> None:
        if done == 0:
            source.write_bytes(changed)

    with pytest.raises(BadInputError, match="changed while it was uploaded"):
        client.upload_artifact(source, ArtifactKind.DATASET, alter)
    assert all(a.state != ARTIFACT_STATE_ACTIVE for a in server.artifacts.artifacts.values())


def test_an_error_of_the_progress_callback_reaches_the_caller(client: PruningClient, source: Path) -> None:
    def fail(_done: int, _total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.upload_artifact(source, ArtifactKind.DATASET, fail)


# --- Downloads --------------------------------------------------------------------------------------------------------


def test_a_download_replaces_the_old_file_in_the_end(client: PruningClient, server: FakeServer, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")
    seen: list[int] = []

    def check(done: int, _total: int) -> None:
        seen.append(done)
        assert out.read_bytes() == b"old"

    client.download_artifact(server.artifacts.put(data), out, check)
    assert out.read_bytes() == data
    assert seen == [*range(MIB, SIZE, MIB), SIZE]
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


@pytest.mark.parametrize("length", [1, MIB, 2 * MIB + 7, SIZE])
def test_a_part_of_the_same_file_is_gone_on_from(
    client: PruningClient, server: FakeServer, tmp_path: Path, length: int
) -> None:
    data = random.Random(1).randbytes(SIZE)
    artifact_id = server.artifacts.put(data)
    (tmp_path / "out.bin.part").write_bytes(data[:length])
    client.download_artifact(artifact_id, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == data
    reads = [request.offset for name, request in server.script.calls if name == "ReadArtifact"]
    assert reads == ([] if length == SIZE else [length])


@pytest.mark.parametrize("length", [10, SIZE, SIZE + 10])
def test_a_part_of_another_file_is_thrown_away(
    client: PruningClient, server: FakeServer, tmp_path: Path, length: int
) -> None:
    data = random.Random(1).randbytes(SIZE)
    artifact_id = server.artifacts.put(data)
    (tmp_path / "out.bin.part").write_bytes(b"\xff" * length)
    client.download_artifact(artifact_id, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == data


def test_a_damaged_message_is_asked_for_again(client: PruningClient, server: FakeServer, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    artifact_id = server.artifacts.put(data)
    server.artifacts.damage_read = {2 * MIB}
    client.download_artifact(artifact_id, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == data
    assert server.script.count("ReadArtifact") == 2


def test_bytes_that_are_not_the_artifact_never_reach_the_path(
    client: PruningClient, server: FakeServer, tmp_path: Path
) -> None:
    artifact_id = server.artifacts.put(b"right" * 1000)
    server.artifacts.content[artifact_id][:] = b"wrong" * 1000
    (tmp_path / "out.bin").write_bytes(b"old")
    with pytest.raises(DataLossError, match="SHA-256"):
        client.download_artifact(artifact_id, tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


def test_a_link_stays_a_link(client: PruningClient, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out.bin").symlink_to(tmp_path / "real" / "file.bin")
    client.download_artifact(server.artifacts.put(b"data"), tmp_path / "out.bin")
    assert (tmp_path / "out.bin").is_symlink()
    assert (tmp_path / "real" / "file.bin").read_bytes() == b"data"


def test_a_download_to_nowhere(client: PruningClient, server: FakeServer, tmp_path: Path) -> None:
    artifact_id = server.artifacts.put(b"data")
    with pytest.raises(BadInputError, match="cannot write"):
        client.download_artifact(artifact_id, tmp_path / "no" / "such" / "folder")
    with pytest.raises(NotFoundError):
        client.download_artifact("art-0", tmp_path / "out.bin")
    assert list(tmp_path.iterdir()) == []


def test_artifacts_are_listed_over_all_pages_and_deleted(client: PruningClient, server: FakeServer) -> None:
    ids = {server.artifacts.put(bytes([n]) * 10) for n in range(5)}
    assert {a.artifact_id for a in client.list_artifacts(page_size=2)} == ids
    assert list(client.list_artifacts(ArtifactKind.REPORT)) == []
    for artifact_id in ids:
        client.delete_artifact(artifact_id)
    assert list(client.list_artifacts()) == []
