"""The folder that holds everything of one server, and the lock that keeps a second one out."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruning_server.errors import PreconditionError, Reason


class DataFolder:
    """Makes the folder, readable by this user only, and holds its lock until `close` or the end of the process.

    Args:
        root: the folder.

    Raises:
        PreconditionError: another server holds it, or it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "jobs.sqlite3"
        self.artifacts = root / "artifacts"
        self.runs = root / "jobs"
        with self.faults_explained():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.runs.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Gone with the process, however that ends: there is no stale lock to clean up.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise PreconditionError(
                Reason.DATABASE_UNUSABLE,
                f"another server uses the data folder {root}; stop it, or choose another folder with --data-dir",
            ) from error

    @contextmanager
    def faults_explained(self) -> Iterator[None]:
        """Around everything that opens the folder's contents: says what is wrong with them, and what to do.

        Raises:
            PreconditionError: something in the folder cannot be read or written, or the database is damaged.
        """
        try:
            yield
        except OSError as error:
            where = "" if error.filename is None else f": {error.filename}"
            raise PreconditionError(
                Reason.DATABASE_UNUSABLE,
                f"the data folder {self.root} cannot be used ({error.strerror}{where}); choose another with --data-dir, or"
                " give this user the right to write there",
            ) from error
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}:
                raise PreconditionError(
                    Reason.DATABASE_UNUSABLE,
                    f"{self.database} cannot be written ({error}); give this user the right to write there and in its folder,"
                    " or choose another data folder with --data-dir",
                ) from error
            raise PreconditionError(
                Reason.DATABASE_UNUSABLE,
                f"{self.database} is damaged or cannot be used ({error}); restore it from a backup, or choose another data"
                " folder with --data-dir",
            ) from error

    def close(self) -> None:
        """Lets the next server in."""
        os.close(self._lock)
