"""The database: durable, versioned, one writer, readers that do not wait."""

from __future__ import annotations

import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pruning_server.adapters.database import APPLICATION_ID, Database
from pruning_server.adapters.migrations import load_migrations, statements
from pruning_server.errors import CapacityError, PreconditionError, Reason, UnavailableError

STEPS = (
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);",
    (
        "CREATE TABLE marks (id INTEGER PRIMARY KEY, note INTEGER REFERENCES notes (id) ON DELETE CASCADE);\n"
        "-- A trigger holds semicolons of its own.\n"
        "CREATE TRIGGER notes_stay BEFORE UPDATE ON notes BEGIN SELECT RAISE(ABORT, 'no; never'); END;"
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server.db"


def texts(database: Database) -> list[str]:
    with database.read() as connection:
        return [row["text"] for row in connection.execute("SELECT text FROM notes ORDER BY id")]


def add(database: Database, text: str) -> None:
    with database.write() as connection:
        connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))


def test_what_was_committed_is_there_after_reopening(path: Path) -> None:
    database = Database(path, migrations=STEPS)
    add(database, "kept")
    database.close()
    database.close()
    again = Database(path, migrations=STEPS)
    assert texts(again) == ["kept"]
    again.close()


def test_commits_reach_the_disk_before_they_return(path: Path) -> None:
    database = Database(path, migrations=STEPS)
    with database.write() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
    database.close()


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    database = Database(path, migrations=STEPS)
    add(database, "secret")
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    database.close()


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_undoes_the_transaction(path: Path, error: BaseException) -> None:
    database = Database(path, migrations=STEPS)

    def fail() -> None:
        with database.write() as connection:
            connection.execute("INSERT INTO notes (text) VALUES ('half')")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert texts(database) == []
    add(database, "next")
    assert texts(database) == ["next"]
    database.close()


def test_a_commit_that_fails_undoes_the_transaction(path: Path) -> None:
    database = Database(path, migrations=STEPS)

    def dangle() -> None:
        with database.write() as connection:
            connection.execute("PRAGMA defer_foreign_keys = ON")
            connection.execute("INSERT INTO marks (note) VALUES (99)")

    with pytest.raises(sqlite3.IntegrityError):
        dangle()
    add(database, "next")
    assert texts(database) == ["next"]
    database.close()


def test_readers_see_one_snapshot_and_do_not_wait_for_the_writer(path: Path) -> None:
    database = Database(path, migrations=STEPS)
    add(database, "before")
    with database.read() as reader:
        assert reader.execute("SELECT count(*) FROM notes").fetchone()[0] == 1
        with database.write() as writer:
            writer.execute("INSERT INTO notes (text) VALUES ('during')")
            assert texts(database) == ["before"]
        assert texts(database) == ["before", "during"]
        assert reader.execute("SELECT count(*) FROM notes").fetchone()[0] == 1
    database.close()


def test_readers_cannot_write(path: Path) -> None:
    database = Database(path, migrations=STEPS)

    def write() -> None:
        with database.read() as reader:
            reader.execute("INSERT INTO notes (text) VALUES ('x')")

    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        write()
    assert texts(database) == []
    database.close()


def test_threads_write_one_after_the_other_and_none_is_lost(path: Path) -> None:
    database = Database(path, migrations=STEPS)

    def work(thread: int) -> None:
        for number in range(25):
            with database.write() as connection:
                # A read that decides a write: lost updates would show as equal texts, which are not allowed.
                count = connection.execute("SELECT count(*) FROM notes").fetchone()[0]
                connection.execute("INSERT INTO notes (text) VALUES (?)", (str(count),))
            assert len(texts(database)) > number, thread

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert texts(database) == [str(number) for number in range(200)]
    database.close()


def test_another_process_that_holds_the_file_is_waited_for_and_then_named(path: Path) -> None:
    database = Database(path, migrations=STEPS, busy_timeout_seconds=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError) as caught:
        add(database, "x")
    assert caught.value.reason is Reason.DATABASE_BUSY
    other.execute("ROLLBACK")
    add(database, "x")
    other.close()
    database.close()


def test_a_full_disk_is_named_and_changes_nothing(path: Path) -> None:
    database = Database(path, migrations=STEPS)
    add(database, "before")

    def flood() -> None:
        with database.write() as connection:
            connection.execute("INSERT INTO notes (text) VALUES ('half')")
            # What SQLite does when the disk is full, without filling it.
            connection.execute("PRAGMA max_page_count = 1")
            connection.execute("INSERT INTO notes (text) VALUES (?)", ("x" * 1_000_000,))

    with pytest.raises(CapacityError) as caught:
        flood()
    assert caught.value.reason is Reason.STORAGE_FULL
    with database.write() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    add(database, "after")
    assert texts(database) == ["before", "after"]
    database.close()


def test_a_closed_database_says_that_the_server_stops(path: Path) -> None:
    database = Database(path, migrations=STEPS)
    database.close()
    for use in (lambda: texts(database), lambda: add(database, "x")):
        with pytest.raises(UnavailableError) as caught:
            use()
        assert caught.value.reason is Reason.DRAINING


def test_closing_lets_readers_finish(path: Path) -> None:
    database = Database(path, migrations=STEPS)
    add(database, "x")
    reading, closed = threading.Event(), threading.Event()

    def read() -> int:
        with database.read() as connection:
            reading.set()
            assert closed.wait(10)
            count: int = connection.execute("SELECT count(*) FROM notes").fetchone()[0]
            return count

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(read)
        assert reading.wait(10)
        database.close()
        closed.set()
        assert answer.result(10) == 1


# --- Versions ---------------------------------------------------------------------------------------------------------


def test_an_older_database_is_brought_up_to_date(path: Path) -> None:
    old = Database(path, migrations=STEPS[:1])
    add(old, "kept")
    old.close()
    new = Database(path, migrations=STEPS)
    with new.write() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 2
        assert connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        connection.execute("INSERT INTO marks (note) VALUES (1)")
    assert texts(new) == ["kept"]
    with pytest.raises(sqlite3.IntegrityError, match="never"), new.write() as connection:
        connection.execute("UPDATE notes SET text = 'changed'")
    new.close()


def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    new = Database(path, migrations=STEPS)
    add(new, "kept")
    new.close()
    before = path.read_bytes()
    with pytest.raises(PreconditionError, match="newer") as caught:
        Database(path, migrations=STEPS[:1])
    assert caught.value.reason is Reason.DATABASE_UNUSABLE
    assert caught.value.metadata == {"schema_version": "2", "supported_version": "1"}
    assert path.read_bytes() == before


def test_a_step_that_fails_leaves_the_version_before(path: Path) -> None:
    broken = (STEPS[0], "CREATE TABLE half (x);\nINSERT INTO nowhere VALUES (1);")
    with pytest.raises(sqlite3.OperationalError):
        Database(path, migrations=broken)
    database = Database(path, migrations=STEPS)
    with database.read() as connection:
        names = {row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == {"notes", "marks"}
    database.close()


def test_files_of_others_are_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"these are notes, not a database. " * 100)
    with pytest.raises(PreconditionError, match="not a SQLite database"):
        Database(path)
    assert path.read_bytes() == b"these are notes, not a database. " * 100
    path.unlink()
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE photos (x)")
    foreign.commit()
    foreign.close()
    with pytest.raises(PreconditionError, match="another application"):
        Database(path)


def test_the_schema_of_this_version_is_sound(path: Path) -> None:
    steps = load_migrations()
    assert steps
    assert all(list(statements(step)) for step in steps)
    database = Database(path)
    with database.read() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(steps)
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        # Every reference names a table and a column that exist.
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()


def test_a_script_that_ends_in_the_middle_is_refused() -> None:
    assert list(statements("CREATE TABLE a (x); -- one\n\n-- the end\n")) == ["CREATE TABLE a (x); -- one\n"]
    with pytest.raises(ValueError, match="middle"):
        list(statements("CREATE TABLE a (x);\nCREATE TABLE b ("))
