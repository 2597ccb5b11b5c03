"""A scripted server, a client on it that does not wait long, and the CLI on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from helpers.fake_server import FakeServer
from helpers.quick_client import QUICK
from pruning_client import PruningClient
from pruning_client.cli.main import main


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server without jobs and artifacts."""
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[PruningClient]:
    """A client of it."""
    with PruningClient(server.address, retry_policy=QUICK) as connected:
        yield connected


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def body(self) -> dict[str, Any]:
        """The one object of `--json`."""
        parsed = json.loads(self.out)
        assert isinstance(parsed, dict)
        return parsed


@pytest.fixture
def prune(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """Runs `prune ARGUMENTS --server ...` in this process, with little patience."""
    monkeypatch.setattr("pruning_client.client.RetryPolicy", lambda: QUICK)

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        extra = [] if arguments[0] == "report" else ["--server", server.address]
        code = main([*map(str, arguments), *extra])
        return Ended(code, *capsys.readouterr())

    return call


class Inputs(NamedTuple):
    """The files of one request."""

    model: Path
    data: Path


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """Something that looks like a model, and a dataset; the scripted server does not look inside."""
    found = Inputs(tmp_path / "model.pt", tmp_path / "data.npz")
    found.model.write_bytes(b"PK model" * 500)
    np.savez(found.data, inputs=np.zeros((8, 3), np.float32), targets=np.arange(8) % 2)
    return found
