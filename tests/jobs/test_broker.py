"""Watchers are woken by commits, and none is forgotten or kept for ever."""

from __future__ import annotations

import threading

from pruning_server.jobs.broker import ChangeBroker


def test_a_change_wakes_the_watchers_of_that_job_only() -> None:
    broker = ChangeBroker()
    with broker.subscribe("a") as first, broker.subscribe("a") as second, broker.subscribe("b") as other:
        broker.notify("a")
        assert first.wait(0.0)
        assert second.wait(0.0)
        assert not other.wait(0.0)
        assert not first.wait(0.0)  # told once


def test_a_change_between_two_waits_is_not_missed() -> None:
    broker = ChangeBroker()
    with broker.subscribe("a") as subscription:
        broker.notify("a")
        broker.notify("a")
        assert subscription.wait(0.0)
        broker.notify("a")
        assert subscription.wait(0.0)


def test_a_waiting_watcher_is_woken_by_another_thread() -> None:
    broker = ChangeBroker()
    with broker.subscribe("a") as subscription:
        timer = threading.Timer(0.05, broker.notify, ("a",))
        timer.start()
        assert subscription.wait(10.0)
        timer.join()


def test_nothing_is_kept_of_watchers_that_are_gone() -> None:
    broker = ChangeBroker()
    with broker.subscribe("a"):
        assert broker.watched_jobs() == 1
    assert broker.watched_jobs() == 0
    broker.notify("a")
