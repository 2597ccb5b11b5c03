"""What tests ask about processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], object], timeout_seconds: float = 10.0, what: str = "the condition") -> None:
    """Polls until `condition()` is true; fails after the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_seconds} s")
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def children_of(pid: int) -> list[int]:
    """Process ids of the living children of a process."""
    found = []
    for entry in _processes():
        try:
            parts = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parts[0] not in "ZX" and int(parts[1]) == pid:
            found.append(entry)
    return found


def command_lines(containing: str) -> dict[int, str]:
    """Process ids and command lines of the living processes whose command line holds a text."""
    found = {}
    for entry in _processes():
        try:
            line = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if entry != os.getpid() and containing in line and is_alive(entry):
            found[entry] = line
    return found


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
