"""One real server for the tests that leave it as they found it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helpers.running_server import RunningServer
from pruning_client.cli.main import main


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on an empty data folder."""
    with RunningServer(tmp_path_factory.mktemp("server") / "data") as running:
        yield running


class Answer(NamedTuple):
    """What one `prune ... --json` call gave."""

    exit_code: int
    body: dict[str, Any]
    stderr: str


@pytest.fixture
def prune(server: RunningServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Answer]:
    """Calls the CLI in this process, with `--json`, against the server."""
    assert tmp_path.is_dir()

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        try:
            code = main([*map(str, arguments), "--json", "--server", server.address])
        except SystemExit as exit_:  # argparse's own way out
            code = exit_.code if isinstance(exit_.code, int) else 1
        out, err = capsys.readouterr()
        return Answer(code, json.loads(out) if out.strip() else {}, err)

    return call
