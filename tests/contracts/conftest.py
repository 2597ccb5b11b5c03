"""Every suite here runs against every implementation of the ports it is about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.stores import FILLINGS, ManualClock, OpenStores


@pytest.fixture(params=sorted(FILLINGS))
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStores]:
    opened = FILLINGS[request.param](tmp_path, ManualClock())
    yield opened
    opened.close()
