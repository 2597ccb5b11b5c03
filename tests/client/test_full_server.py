"""A server whose places are all taken says when to come again, and the client does, whatever it was about to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.grpc_world import GrpcWorld, messages
from helpers.processes import wait_until
from pruning_api.v1 import artifact_service_pb2
from pruning_client import ArtifactKind, PruningClient, Snapshot
from pruning_client.retries import Timing
from pruning_server.service.server import CallLimits


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GrpcWorld]:
    with GrpcWorld(tmp_path / "data", limits=CallLimits(watches=1, transfers=1)) as world:
        yield world


class Waiting:
    """A client whose waits are remembered, and free the place that is taken."""

    def __init__(self, world: GrpcWorld, free: Callable[[], object]) -> None:
        self.waits: list[float] = []
        self._free = free
        self.client = PruningClient(world.server.address, timing=Timing(sleep=self._sleep))

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._free()
        time.sleep(0.1)


def test_a_watch_comes_back_when_it_was_asked_to(world: GrpcWorld) -> None:
    job_id = world.submit().job_id
    taken = world.watch(job_id)
    next(iter(taken))
    waiting = Waiting(world, taken.cancel)
    with waiting.client as client:
        first = next(client.watch(job_id))
    assert isinstance(first.body, Snapshot)
    assert all(10.0 <= seconds <= 12.5 for seconds in waiting.waits)
    assert waiting.waits


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_transfer_comes_back_when_it_was_asked_to(world: GrpcWorld, tmp_path: Path, direction: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    stored = world.upload(b"stored before")
    go_on = threading.Event()

    def held() -> Iterator[artifact_service_pb2.WriteArtifactRequest]:
        yield next(messages(world.create(b"0123456789").artifact_id, b"0123456789", size=5))
        go_on.wait(60)

    taken = world.artifacts.WriteArtifact.future(held(), timeout=60)
    wait_until(lambda: ("upload", (5,)) in world.world.metrics.calls)
    waiting = Waiting(world, go_on.set)
    with waiting.client as client:
        if direction == "up":
            client.upload_artifact(tmp_path / "file", ArtifactKind.DATASET)
        else:
            client.download_artifact(stored, tmp_path / "down")
            assert (tmp_path / "down").read_bytes() == b"stored before"
    assert waiting.waits
    assert all(5.0 <= seconds <= 6.25 for seconds in waiting.waits)
    taken.result()
