"""What is tried again, how often, and after which waits; with a clock that only the test moves."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from pruning_client import (
    DeadlineExceededError,
    InternalError,
    PruningClientError,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
)
from pruning_client.retries import Outage, Timing, backoff_seconds, with_retries


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self, seed: int = 0) -> None:
        self.seconds = 0.0
        self.waits: list[float] = []
        self.timing = Timing(now=lambda: self.seconds, sleep=self.sleep, uniform=random.Random(seed).uniform)

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        self.waits.append(seconds)
        self.seconds += seconds


def failing(*errors: PruningClientError) -> Callable[[], str]:
    """A call that fails with these, then succeeds."""
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


POLICY = RetryPolicy(attempts=5, initial_seconds=0.2, max_seconds=5.0, outage_seconds=60.0, exhausted_seconds=30.0)


def test_backoff_doubles_with_jitter_up_to_its_limit() -> None:
    timing = Clock().timing
    for failures in range(1, 40):
        longest = min(5.0, 0.2 * 2 ** (failures - 1))
        waits = [backoff_seconds(POLICY, failures, timing) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert len(set(waits)) > 40


@pytest.mark.parametrize("failures", range(7))
def test_unavailable_is_tried_so_often(failures: int) -> None:
    clock, call = Clock(), failing(*[UnavailableError("down")] * failures)
    if failures < POLICY.attempts:
        assert with_retries(call, POLICY, clock.timing) == "done"
        assert len(clock.waits) == failures
    else:
        with pytest.raises(UnavailableError):
            with_retries(call, POLICY, clock.timing)
        assert len(clock.waits) == POLICY.attempts - 1


@pytest.mark.parametrize("error", [InternalError("x"), DeadlineExceededError("x"), ResourceExhaustedError("full")])
def test_other_errors_are_not_tried_again(error: PruningClientError) -> None:
    clock = Clock()
    with pytest.raises(type(error)):
        with_retries(failing(error), POLICY, clock.timing)
    assert clock.waits == []


@pytest.mark.parametrize(
    ("asked", "waits"), [([3.0], [3.0]), ([10.0, 20.0], [10.0, 20.0]), ([31.0], None), ([20.0, 11.0], None)]
)
def test_a_full_server_is_waited_for_as_it_asks_within_bounds(asked: list[float], waits: list[float] | None) -> None:
    clock = Clock()
    call = failing(*(ResourceExhaustedError("full", retry_after_seconds=seconds) for seconds in asked))
    if waits is None:
        with pytest.raises(ResourceExhaustedError):
            with_retries(call, POLICY, clock.timing)
    else:
        assert with_retries(call, POLICY, clock.timing) == "done"
        # Never sooner than asked; up to a quarter later, so that not all who were turned away come back at once.
        assert all(low <= wait <= 1.25 * low for low, wait in zip(waits, clock.waits, strict=True))


def test_a_transfer_comes_back_when_a_full_server_says() -> None:
    clock = Clock()
    outage = Outage(POLICY, clock.timing)
    for _ in range(POLICY.attempts):
        outage.endure(ResourceExhaustedError("full", retry_after_seconds=8.0))
    assert all(8.0 <= wait <= 10.0 for wait in clock.waits)
    error = ResourceExhaustedError("full", retry_after_seconds=8.0)
    with pytest.raises(ResourceExhaustedError):
        _endure_for_ever(outage, error)
    assert clock.seconds <= POLICY.outage_seconds


def _endure_for_ever(outage: Outage, error: PruningClientError) -> None:
    for _ in range(1000):
        outage.endure(error)


def endure_until_it_raises(outage: Outage, before: Callable[[], None] = lambda: None) -> int:
    """How many failures are endured, with `before` called before each."""
    error = UnavailableError("down")
    for number in range(10_000):
        before()
        try:
            outage.endure(error)
        except UnavailableError:
            return number
    raise AssertionError("it never gives up")


def test_a_server_that_never_answered_is_given_up_soon() -> None:
    clock = Clock()
    assert endure_until_it_raises(Outage(POLICY, clock.timing)) == POLICY.attempts - 1
    assert clock.seconds < 5


@pytest.mark.parametrize("sign", ["reached", "over"])
def test_a_server_that_answered_before_is_waited_for(sign: str) -> None:
    clock = Clock()
    outage = Outage(POLICY, clock.timing)
    getattr(outage, sign)()
    endure_until_it_raises(outage)
    assert POLICY.outage_seconds - POLICY.max_seconds <= clock.seconds <= POLICY.outage_seconds


def test_progress_restores_patience_and_an_answer_alone_does_not() -> None:
    clock = Clock()
    outage = Outage(POLICY, clock.timing)
    for _ in range(100):
        outage.over()
        for _ in range(8):
            outage.endure(UnavailableError("down"))
    assert clock.seconds > 5 * POLICY.outage_seconds
    outage.over()
    clock.seconds = 0.0
    endure_until_it_raises(outage, before=outage.reached)
    assert clock.seconds <= POLICY.outage_seconds
