"""One SQLite file: durable transactions, one writer at a time, readers that do not wait, a schema with versions."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pruning_server.adapters.failpoints import Failpoints, no_failpoints
from pruning_server.adapters.migrations import load_migrations, statements
from pruning_server.errors import CapacityError, PreconditionError, Reason, UnavailableError

# "prun": tells our files from other applications' (SQLite's header field for that purpose).
APPLICATION_ID = 0x7072756E
MAX_IDLE_READERS = 8
# The log is cut back to this after a checkpoint; without it, one burst of writes would occupy the disk for good.
WAL_SIZE_LIMIT_BYTES = 64 * 2**20


class Database:
    """A SQLite database in WAL mode, safe to use from any thread.

    A commit is on the disk when `write()` is left (synchronous=FULL). Needs a local file system: WAL does not work over
    a network.

    Args:
        path: the file; created, readable by this user only, if it is missing.
        busy_timeout_seconds: how long a transaction waits for another process that holds the file.
        migrations: SQL of each step of the schema.
        failpoints: where tests make it fail.

    Raises:
        PreconditionError: the file is not ours, or was written by a newer version of the server.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout_seconds: float = 10.0,
        migrations: Sequence[str] | None = None,
        failpoints: Failpoints = no_failpoints,
    ) -> None:
        self._path = path
        self._reach = failpoints
        self._busy_timeout_seconds = busy_timeout_seconds
        self._write_lock = threading.Lock()
        self._readers_lock = threading.Lock()
        self._idle_readers: list[sqlite3.Connection] = []
        self._closed = False
        _create_private_file(path)
        self._writer = self._connect()
        try:
            with _translated():
                self._prepare(load_migrations() if migrations is None else migrations)
        except sqlite3.DatabaseError as error:
            self._writer.close()
            if _primary_code(error) not in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
                raise
            raise PreconditionError(
                Reason.DATABASE_UNUSABLE,
                f"{path} is damaged or not a SQLite database; restore it from a backup or choose another data folder",
            ) from error
        except BaseException:
            self._writer.close()
            raise

    @property
    def path(self) -> Path:
        """Where the file lies; SQLite keeps `-wal` and `-shm` files beside it."""
        return self._path

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Runs the block as one transaction that sees and changes the newest state; an exception undoes all of it.

        Raises:
            CapacityError: the disk is full; nothing was changed.
            UnavailableError: another process holds the file for too long; nothing was changed.
        """
        with self._write_lock, _translated():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._reach("commit.before")
                self._writer.execute("COMMIT")
                self._reach("commit.after")
            finally:
                # After an exception, or a commit that failed. A full disk may have rolled back by itself.
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Runs the block on one unchanging snapshot of the data, without waiting for a writer."""
        connection = self._borrow_reader()
        try:
            with _translated():
                connection.execute("BEGIN")
                yield connection
        finally:
            self._return_reader(connection)

    def close(self) -> None:
        """Closes the file after the transaction that is going on; idempotent."""
        with self._readers_lock:
            self._closed = True
            idle, self._idle_readers = self._idle_readers, []
        for connection in idle:
            connection.close()
        with self._write_lock:
            self._writer.close()

    def _prepare(self, migrations: Sequence[str]) -> None:
        self._check_ours(len(migrations))
        mode = self._writer.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise PreconditionError(
                Reason.DATABASE_UNUSABLE,
                f"SQLite cannot use its write-ahead log for {self._path} (journal mode {mode!r});"
                " put the data folder on a local file system",
            )
        self._writer.execute("PRAGMA synchronous = FULL")
        self._writer.execute("PRAGMA foreign_keys = ON")
        self._writer.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_LIMIT_BYTES}")
        while self._migrate_one_step(migrations):
            pass

    def _check_ours(self, newest: int) -> None:
        application_id = self._writer.execute("PRAGMA application_id").fetchone()[0]
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        tables = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application_id != APPLICATION_ID and (application_id, version, tables) != (0, 0, 0):
            raise PreconditionError(
                Reason.DATABASE_UNUSABLE,
                f"{self._path} is a database of another application; choose another data folder",
            )
        if version > newest:
            raise PreconditionError(
                Reason.DATABASE_UNUSABLE,
                f"{self._path} has schema version {version}, but this server knows versions up to {newest}:"
                " it was written by a newer server. Start that one, or choose another data folder",
                metadata={"schema_version": str(version), "supported_version": str(newest)},
            )

    def _migrate_one_step(self, migrations: Sequence[str]) -> bool:
        """Applies the next step in a transaction of its own; returns whether there was one."""
        with self.write() as connection:
            # Read inside the transaction: another process may have migrated since.
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if version >= len(migrations):
                return False
            for statement in statements(migrations[version]):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
            return True

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=self._busy_timeout_seconds,
            # Transactions are begun and ended here, not by the module.
            isolation_level=None,
            # A connection moves between threads, but is used by one at a time.
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _borrow_reader(self) -> sqlite3.Connection:
        with self._readers_lock:
            if self._closed:
                raise UnavailableError(Reason.DRAINING, "the server is stopping; try again later")
            if self._idle_readers:
                return self._idle_readers.pop()
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _return_reader(self, connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        with self._readers_lock:
            if not self._closed and len(self._idle_readers) < MAX_IDLE_READERS:
                self._idle_readers.append(connection)
                return
        connection.close()


def _create_private_file(path: Path) -> None:
    """Creates the file with mode 0600 if it is missing; SQLite gives its `-wal` and `-shm` files the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension, which is in the higher bytes; 0 where the module raised by itself."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


@contextmanager
def _translated() -> Iterator[None]:
    """Turns the conditions of SQLite that an operator or a retry can cure into errors that say so."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        if "closed database" not in str(error):
            raise
        raise UnavailableError(Reason.DRAINING, "the server is stopping; try again later") from error
    except sqlite3.DatabaseError as error:
        code = _primary_code(error)
        if code == sqlite3.SQLITE_FULL:
            raise CapacityError(
                Reason.STORAGE_FULL, "the server's disk is full; ask its operator to free space, then try again"
            ) from error
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise UnavailableError(Reason.DATABASE_BUSY, "the server's database is busy; try again") from error
        raise
