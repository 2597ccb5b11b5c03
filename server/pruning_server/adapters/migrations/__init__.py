"""The database's schema as numbered steps: `NNNN_name.sql` takes a database from version NNNN - 1 to NNNN.

A step that was released is never changed; a new one is added.
"""

from __future__ import annotations

import importlib.resources
import sqlite3
from collections.abc import Iterator


def load_migrations() -> tuple[str, ...]:
    """Returns the SQL of every step, in order; the step at index i leads to version i + 1.

    Raises:
        RuntimeError: the numbers of the files have a gap.
    """
    files = sorted(
        (file for file in importlib.resources.files(__name__).iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    numbers = [int(file.name[:4]) for file in files]
    if numbers != list(range(1, len(files) + 1)):
        raise RuntimeError(f"the migrations must be numbered from 1 without gaps, but are {numbers}")
    return tuple(file.read_text(encoding="utf-8") for file in files)


def statements(script: str) -> Iterator[str]:
    """Yields the statements of a script one by one, so that they can run inside one transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if any(line and not line.startswith("--") for line in map(str.strip, statement.splitlines())):
        raise ValueError(f"a migration ends in the middle of a statement: {statement!r}")
