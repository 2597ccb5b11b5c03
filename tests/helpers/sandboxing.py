"""Whether this machine gives the sandbox; tests run inside it wherever it does."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

from pruning_server.sandbox.trial import Trial, read


@cache
def trial() -> Trial:
    """What this machine gives."""
    command = [sys.executable, "-P", "-s", "-m", "pruning_server.sandbox", "check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return read(done.stdout)


def is_given() -> bool:
    """Whether all of it holds here."""
    return not trial().lacking


def flags() -> tuple[str, ...]:
    """What a server needs to start here."""
    return () if is_given() else ("--insecure-no-sandbox",)


def needs_sandbox() -> None:
    """Skips a test that is about the sandbox where there is none."""
    if not is_given():
        pytest.skip(f"no sandbox here: {'; '.join(trial().lacking)}")
