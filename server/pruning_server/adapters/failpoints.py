"""Places where a crash or a fault of the disk hurts most. Nothing happens at them; tests pass in what makes them fail.

`commit.before`, `commit.after`      of every transaction that writes
`upload.write`, `upload.sync`        bytes of a caller on their way into the store
`stage.write`, `stage.sync`          a result on its way into the store
`publish.before`, `publish.after`    around the rename that puts a file in its place
`worker.spawned`                     a worker has been started
"""

from __future__ import annotations

from collections.abc import Callable

Failpoints = Callable[[str], None]


def no_failpoints(_name: str) -> None:
    """Does nothing."""
