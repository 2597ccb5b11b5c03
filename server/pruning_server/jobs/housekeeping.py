"""Deletes, every so often, what is past its retention."""

from __future__ import annotations

import logging
import threading

from pruning_server.jobs.ports import ArtifactStore, JobStore

_log = logging.getLogger(__name__)


class Housekeeper:
    """A thread that deletes expired jobs and then the files that no job needs any more."""

    def __init__(self, store: JobStore, artifacts: ArtifactStore, interval_seconds: float) -> None:
        self._store = store
        self._artifacts = artifacts
        self._interval_seconds = interval_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="housekeeper", daemon=True)

    def start(self) -> None:
        """Keeps house now and from then on at every interval."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the round that is going on; does not wait for it."""
        self._stopping.set()

    def keep_house(self) -> tuple[int, int]:
        """One round; returns (jobs deleted, bytes freed)."""
        jobs = self._store.delete_expired()
        freed_bytes = self._artifacts.collect_garbage()
        if jobs or freed_bytes:
            _log.info("deleted %d expired jobs and %d bytes that no job needs", jobs, freed_bytes)
        return jobs, freed_bytes

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.keep_house()
            except Exception:  # noqa: BLE001 - see below
                # A fault of the disk or the database now must not mean that nothing is ever deleted again.
                _log.exception("housekeeping failed; it is tried again in %.0f s", self._interval_seconds)
            self._stopping.wait(self._interval_seconds)
