"""The database with its transactions measured."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pruning_server.adapters.database import Database
from pruning_server.adapters.failpoints import Failpoints, no_failpoints
from pruning_server.errors import Reason, ServiceError

_DATABASE_REASONS = frozenset({Reason.STORAGE_FULL, Reason.DATABASE_BUSY})


class TransactionMetrics(Protocol):
    """Where transactions are counted; `op` is `read` or `write`."""

    def transaction_finished(self, op: str, seconds: float) -> None:
        """A transaction ended as its block wanted, the wait for the database included."""
        ...

    def transaction_failed(self, op: str) -> None:
        """The database could not do it."""
        ...


class MeasuredDatabase(Database):
    """A `Database` that reports every transaction.

    Args:
        path: the file.
        metrics: where to.
        monotonic: a clock in seconds.
        failpoints: where tests make it fail.
    """

    def __init__(
        self,
        path: Path,
        metrics: TransactionMetrics,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        failpoints: Failpoints = no_failpoints,
    ) -> None:
        self._metrics = metrics
        self._monotonic = monotonic
        super().__init__(path, failpoints=failpoints)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """As `Database.write`."""
        with self._measured("write"), super().write() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """As `Database.read`."""
        with self._measured("read"), super().read() as connection:
            yield connection

    @contextmanager
    def _measured(self, op: str) -> Iterator[None]:
        started = self._monotonic()
        try:
            yield
        except sqlite3.Error:
            self._metrics.transaction_failed(op)
            raise
        except ServiceError as error:
            # A block also raises what its caller must hear, e.g. that there is no such job: no fault of the database.
            if error.reason in _DATABASE_REASONS:
                self._metrics.transaction_failed(op)
            raise
        self._metrics.transaction_finished(op, self._monotonic() - started)
