"""Wakes the watchers of a job when the job store has committed a new event of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Subscription:
    """What one watcher waits on; `wait` forgets the news that it returns."""

    def __init__(self) -> None:
        self._news = threading.Event()

    def wait(self, timeout_seconds: float) -> bool:
        """Waits for news, at most `timeout_seconds`; returns whether there were any."""
        if not self._news.wait(timeout_seconds):
            return False
        # Cleared before the caller reads the store: what is committed after this line sets it again.
        self._news.clear()
        return True

    def wake(self) -> None:
        """Says that there are news."""
        self._news.set()


class ChangeBroker:
    """Passes "job X has a new event" from the store's commits to whoever watches job X; keeps nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: dict[str, set[Subscription]] = {}

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[Subscription]:
        """Yields a subscription to one job; subscribe before reading the store, so that nothing falls between."""
        subscription = Subscription()
        with self._lock:
            self._subscriptions.setdefault(job_id, set()).add(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                watchers = self._subscriptions[job_id]
                watchers.discard(subscription)
                if not watchers:
                    del self._subscriptions[job_id]

    def notify(self, job_id: str) -> None:
        """Wakes the watchers of one job; the job store calls this after each commit that adds an event."""
        with self._lock:
            watchers = tuple(self._subscriptions.get(job_id, ()))
        for subscription in watchers:
            subscription.wake()

    def watched_jobs(self) -> int:
        """How many jobs are being watched."""
        with self._lock:
            return len(self._subscriptions)
