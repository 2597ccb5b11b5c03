"""A control group per run, where the server was given a hierarchy of its own to divide (cgroup v2, delegated).

systemd does that with `Delegate=yes`, container runtimes where `/sys/fs/cgroup` is writable. The kernel then bounds a run's memory and
tasks exactly, page cache and all, and ends all of it at once. Elsewhere the watchdog (`usage.py`) has to do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from pruning_server.adapters.usage import MAX_THREADS

MOUNT = Path("/sys/fs/cgroup")
REMOVE_SECONDS = 2.0
# For what a process has besides its own pages: those of the kernel for it, and files that are mapped and in use.
SLACK_BYTES = 256 * 1024 * 1024
_CONTROLLERS = ("memory", "pids")
_SERVER = "pruning-server"
_RUN_PREFIX = "pruning-run-"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunGroup:
    """The group of one run; `close` it when the run is over."""

    path: Path

    def add(self, pid: int) -> None:
        """Moves a process, and all that it will start, into the group; a process that is gone is left alone."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Ends whatever is left in it and removes it."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + REMOVE_SECONDS
        while time.monotonic() < deadline:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.02)  # Busy until the kernel has reaped what was in it.
            else:
                return
        _log.warning("the control group %s could not be removed", self.path)


class Cgroups:
    """The hierarchy below the server's own group."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(self, memory_bytes: int | None) -> RunGroup | None:
        """A group for one run; None where the kernel refuses, and the watchdog has to do.

        Args:
            memory_bytes: most that the run may allocate; None: no limit.
        """
        group = RunGroup(self._root / f"{_RUN_PREFIX}{uuid.uuid4().hex}")
        try:
            group.path.mkdir()
            (group.path / "pids.max").write_text(str(MAX_THREADS))
            if memory_bytes is not None:
                (group.path / "memory.max").write_text(str(memory_bytes + SLACK_BYTES))
                (group.path / "memory.oom.group").write_text("1")
        except OSError as error:
            _log.warning("a run goes without a control group (%s)", error)
            group.close()
            return None
        return group


def delegated(mount: Path = MOUNT, proc: Path = Path("/proc")) -> Cgroups | None:
    """Takes over the server's own group if that was given to it; None where it was not.

    A group may have processes or divide its resources among groups below, not both. So the server, and an init that
    started it, move into one of them. That is done only where nobody else is in the group.
    """
    try:
        own = next(line[3:] for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::"))
        root = mount / own.lstrip("/")
        inside = {int(line) for line in (root / "cgroup.procs").read_text().split()}
        offered = (root / "cgroup.controllers").read_text().split()
        if not set(_CONTROLLERS) <= set(offered) or not inside <= {1, os.getpid()} or os.getpid() not in inside:
            return None
        _remove_stale(root)
        (root / _SERVER).mkdir(exist_ok=True)
        for pid in sorted(inside):
            (root / _SERVER / "cgroup.procs").write_text(str(pid))
        (root / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in _CONTROLLERS))
    except (OSError, StopIteration, ValueError) as error:
        _log.debug("no control groups of our own: %s", error)
        return None
    return Cgroups(root)


def _remove_stale(root: Path) -> None:
    """Ends and removes the groups of a server that died."""
    for path in root.glob(f"{_RUN_PREFIX}*"):
        RunGroup(path).close()
