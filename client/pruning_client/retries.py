"""Everything about trying again: what may be retried, how often, and how long to wait between.

Only UNAVAILABLE is retried by itself, since such a call was not served; RESOURCE_EXHAUSTED only where the server says when
(google.rpc.RetryInfo). Submitting is safe to repeat because every request carries its request_id.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pruning_client.errors import PruningClientError, ResourceExhaustedError, UnavailableError

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How stubborn the client is.

    Attributes:
        attempts: tries of one call, the first included, and of reaching a server that never answered.
        initial_seconds: wait after the first failure; doubles with each, with jitter, up to `max_seconds`.
        outage_seconds: how long a transfer or a watch that worked before keeps trying to go on.
        exhausted_seconds: longest sum of waits that a full server may ask for.
    """

    attempts: int = 5
    initial_seconds: float = 0.2
    max_seconds: float = 5.0
    outage_seconds: float = 120.0
    exhausted_seconds: float = 30.0


@dataclass(frozen=True)
class Timing:
    """The clock, the waiting and the chance that retries use; a test passes its own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform


def backoff_seconds(policy: RetryPolicy, failures: int, timing: Timing) -> float:
    """Returns the wait after so many failures in a row: exponential, with jitter of one half."""
    longest = min(policy.max_seconds, policy.initial_seconds * 2.0 ** min(failures - 1, 30))
    return timing.uniform(longest / 2, longest)


def asked_seconds(retry_after_seconds: float, timing: Timing) -> float:
    """Returns the wait that a full server asked for, and up to a quarter more, so that not all come back at once."""
    asked = max(retry_after_seconds, 0.0)
    return asked + timing.uniform(0.0, asked / 4)


def may_be_endured(error: PruningClientError) -> bool:
    """Whether a transfer or a watch may go on after it: nobody was there, or the server is full and says when to come."""
    return isinstance(error, UnavailableError) or (
        isinstance(error, ResourceExhaustedError) and error.retry_after_seconds is not None
    )


def with_retries(call: Callable[[], T], policy: RetryPolicy, timing: Timing) -> T:
    """Returns what `call` returns, trying again where that may help.

    Raises:
        PruningClientError: the last error of `call`.
    """
    failures, exhausted_seconds = 0, 0.0
    while True:
        try:
            return call()
        except UnavailableError:
            failures += 1
            if failures >= policy.attempts:
                raise
            delay_seconds = backoff_seconds(policy, failures, timing)
        except ResourceExhaustedError as error:
            failures += 1
            if error.retry_after_seconds is None or failures >= policy.attempts:
                raise
            exhausted_seconds += max(error.retry_after_seconds, 0.0)
            if exhausted_seconds > policy.exhausted_seconds:
                raise
            delay_seconds = asked_seconds(error.retry_after_seconds, timing)
        timing.sleep(delay_seconds)


class Outage:
    """The patience of one transfer or watch: reset by every sign of progress, used up by failures in between."""

    def __init__(self, policy: RetryPolicy, timing: Timing) -> None:
        self._policy = policy
        self._timing = timing
        self._failures = 0
        self._since: float | None = None
        self._has_worked = False

    def reached(self) -> None:
        """The server answered, which shows that it exists, but nothing moved yet."""
        self._has_worked = True

    def over(self) -> None:
        """There was progress."""
        self._failures, self._since, self._has_worked = 0, None, True

    def endure(self, error: PruningClientError) -> None:
        """Waits before the next try.

        Raises:
            PruningClientError: `error`, if patience is used up.
        """
        self._failures += 1
        now = self._timing.now()
        self._since = now if self._since is None else self._since
        delay_seconds = backoff_seconds(self._policy, self._failures, self._timing)
        if isinstance(error, ResourceExhaustedError):
            self.reached()
            delay_seconds = max(delay_seconds, asked_seconds(error.retry_after_seconds or 0.0, self._timing))
        if self._failures >= self._policy.attempts:
            waited_seconds = now - self._since + delay_seconds
            if not self._has_worked or waited_seconds > self._policy.outage_seconds:
                raise error
        self._timing.sleep(delay_seconds)
