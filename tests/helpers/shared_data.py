"""Finds the maintainers' data folder beside the checkout; a user's clone has none, and its tests skip."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def shared_file(name: str) -> Path:
    """The path of a data file, or skips the calling test with the reason."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"needs the maintainers' data file {name}, which is not part of the repository")
    return path
