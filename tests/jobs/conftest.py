"""The jobs room over one data folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.job_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Real stores and processes, a stand-in worker."""
    world = World(tmp_path / "data")
    yield world
    world.close()
