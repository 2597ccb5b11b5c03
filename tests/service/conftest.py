"""A real gRPC server over real stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest

from helpers.grpc_world import GrpcWorld, Refusal


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GrpcWorld]:
    """A server whose jobs stay queued."""
    with GrpcWorld(tmp_path / "data") as world:
        yield world


@pytest.fixture
def running(tmp_path: Path) -> Iterator[GrpcWorld]:
    """A server that runs jobs with a stand-in worker."""
    with GrpcWorld(tmp_path / "data", running=True) as world:
        yield world


@pytest.fixture
def refused() -> Callable[[grpc.StatusCode, str], AbstractContextManager[list[Refusal]]]:
    """`with refused(code, reason) as caught:` the call fails so; `caught[0]` is the rest of it."""

    @contextmanager
    def check(code: grpc.StatusCode, reason: str) -> Iterator[list[Refusal]]:
        caught: list[Refusal] = []
        with pytest.raises(grpc.RpcError) as error:
            yield caught
        refusal = Refusal(error.value)
        assert (refusal.code, refusal.reason) == (code, reason), refusal.message
        assert refusal.domain == "pruning-service"
        caught.append(refusal)

    return check
