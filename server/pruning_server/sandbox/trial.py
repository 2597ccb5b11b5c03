"""Tries out, in a process of its own, whether this machine gives the whole sandbox; what is read of the answer."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pruning_server.sandbox.inside import enter
from pruning_server.sandbox.kernel import LackError
from pruning_server.sandbox.paths import exposing
from pruning_server.sandbox.policy import Policy

TRIAL_SECONDS = 60.0


@dataclass(frozen=True)
class Trial:
    """What a machine gives.

    Attributes:
        landlock_abi: the version of Landlock that is in force; 0: none.
        lacking: what is missing or does not hold, for people; (): nothing.
    """

    landlock_abi: int
    lacking: tuple[str, ...]


def check() -> int:
    """Prints the trial of this machine as one line of JSON; returns the exit code, 0 where nothing is lacking."""
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: there is no way out, not even to remove the folder.
        command = [sys.executable, "-P", "-s", "-m", "pruning_server.sandbox", "try", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False)
    try:
        found = read(done.stdout)
    except (ValueError, TypeError, KeyError):
        last = done.stderr.strip().splitlines()[-1:] or [""]
        found = Trial(0, (f"the trial ended with exit code {done.returncode}: {last[0]}",))
    print(json.dumps(dataclasses.asdict(found)))
    return 1 if found.lacking else 0


def read(text: str) -> Trial:
    """Reads what `check` printed.

    Raises:
        ValueError, TypeError, KeyError: it is no such answer.
    """
    fields = json.loads(text)
    return Trial(landlock_abi=int(fields["landlock_abi"]), lacking=tuple(map(str, fields["lacking"])))


def try_out(folder: Path) -> int:
    """Puts this process inside a folder of the folder, and prints what does not hold there as one line of JSON."""
    # Asked here, where the paths are those of a worker: the server's own may hold the folder that it was started in.
    shared = exposing(folder)
    if shared is not None:
        text = f"the data folder lies in {shared}, which every worker may read: choose another --data-dir"
        print(json.dumps(dataclasses.asdict(Trial(0, (text,)))))
        return 0
    inside, outside = folder / "inside", folder / "outside"
    inside.mkdir()
    outside.write_bytes(b"")
    try:
        version = enter(Policy(write=(str(inside),)))
    except (LackError, OSError) as error:
        found = Trial(0, (str(error),))
    else:
        found = Trial(version, _breaches(inside, outside))
    print(json.dumps(dataclasses.asdict(found)))
    return 0


def _breaches(inside: Path, outside: Path) -> tuple[str, ...]:
    """What does not hold although it was installed."""
    refused: dict[str, Callable[[], object]] = {
        "Landlock: a file outside could be read": outside.read_bytes,
        "Landlock: a file outside could be written": lambda: outside.write_bytes(b"x"),
        "seccomp: a socket could be made": socket.socket,
        "seccomp: a process could be started": _fork,
        "seccomp: the parent could be signalled": lambda: os.kill(os.getppid(), 0),
    }
    found = [text for text, attempt in refused.items() if not _is_refused(attempt)]
    if _is_refused(lambda: (inside / "file").write_bytes(b"x")):
        found.append("Landlock: the process's own folder could not be written")
    return tuple(found)


def _is_refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return True
    return False


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
