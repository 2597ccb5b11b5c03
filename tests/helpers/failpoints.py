"""What happens at the failpoints of a server under test: `name[@hit]=action[:argument]`, several joined by `;`.

`name` is one of `pruning_server.adapters.failpoints`; those of commits are followed by who commits, e.g.
`commit.before/create`, `commit.after/succeed`; `commit.before` alone means all of them. `@3`: only the third time.
Actions: `kill` (kill -9 of the process), `eio`, `enospc`, `sleep:SECONDS`.
"""

from __future__ import annotations

import collections
import errno
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

VARIABLE = "FAILPOINTS"
# Between the method of a store that writes and the failpoint: they say nothing about who writes.
_PASSED_OVER = ("contextlib.py", "adapters/database.py", "metrics/database.py", "helpers/failpoints.py")
_HELPERS = ("_change", "_change_all")

SITES = (
    *(
        f"commit.{moment}/{who}"
        for moment in ("before", "after")
        for who in (
            "create", "request_cancel", "delete", "claim", "append_event", "succeed", "fail", "recover", "note_committed",
            "publish_upload", "settle", "adopt", "put_summary", "remove",
        )
    ),
    "upload.write", "upload.sync", "stage.write", "stage.sync", "publish.before", "publish.after", "worker.spawned",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """One fault. `hit`: which of the visits it befalls, from 1; None: each."""

    name: str
    action: str
    argument: str = ""
    hit: int | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Reads `name[@hit]=action[:argument]`."""
        place, _, what = text.partition("=")
        name, _, hit = place.partition("@")
        action, _, argument = what.partition(":")
        if action not in ACTIONS:
            raise ValueError(f"{text!r}: no such action; there are {', '.join(ACTIONS)}")
        return cls(name, action, argument, int(hit) if hit else None)

    def covers(self, place: str) -> bool:
        """Whether it is about this place."""
        return place == self.name or place.startswith(f"{self.name}/")


class ArmedFailpoints:
    """Fills `pruning_server.adapters.failpoints.Failpoints`; safe to use from any thread."""

    def __init__(self, text: str) -> None:
        self._rules = [Rule.parse(part) for part in text.split(";") if part]
        self._lock = threading.Lock()
        self.visits = collections.Counter[Rule]()

    def __call__(self, name: str) -> None:
        place = f"{name}/{_who()}" if name.startswith("commit.") else name
        for rule in self._rules:
            if rule.covers(place):
                with self._lock:
                    self.visits[rule] += 1
                    is_due = rule.hit in {None, self.visits[rule]}
                if is_due:
                    ACTIONS[rule.action](name, rule.argument)


def _who() -> str:
    """The method that committed: the first function of a store on the stack."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.endswith(_PASSED_OVER) and code.co_name not in _HELPERS:
            return code.co_name
        frame = frame.f_back
    return "unknown"


def _kill(_name: str, _argument: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _sleep(_name: str, argument: str) -> None:
    time.sleep(float(argument))


def _fail(number: int, sqlite_code: int) -> Callable[[str, str], None]:
    def action(name: str, _argument: str) -> None:
        if not name.startswith("commit."):
            raise OSError(number, os.strerror(number))
        # What SQLite makes of the same fault of the disk.
        error = sqlite3.OperationalError(f"{os.strerror(number)} (on purpose)")
        error.sqlite_errorcode = sqlite_code
        raise error

    return action


ACTIONS: dict[str, Callable[[str, str], None]] = {
    "kill": _kill,
    "eio": _fail(errno.EIO, sqlite3.SQLITE_IOERR),
    "enospc": _fail(errno.ENOSPC, sqlite3.SQLITE_FULL),
    "sleep": _sleep,
}
