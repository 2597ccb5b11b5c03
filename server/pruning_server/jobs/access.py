"""Who may call, what each may do, and how much of the server each may use; values and ports, no I/O."""

from __future__ import annotations

import enum
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pruning_server.errors import CapacityError, Reason

ANONYMOUS_NAME = "anonymous"
# No colon: names of certificates begin with `certificate:`, so that nobody's token can pass for one.
PRINCIPAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
CERTIFICATE_PREFIX = "certificate:"
MAX_IDENTITY_CHARACTERS = 256
# How many principals' buckets are remembered; one that was not used for long is full again anyway.
MAX_BUCKETS = 10_000


class Role(enum.StrEnum):
    """What a principal may do; each may do what those before it may.

    READ: look at its own jobs and files. SUBMIT: send, submit, cancel and delete. ADMIN: list, watch, cancel and delete
    everybody's jobs, though not read or delete their files.
    """

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Whether this role may do what `needed` may."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(needed)


@dataclass(frozen=True)
class Principal:
    """Who calls: the owner of what the call makes."""

    name: str
    role: Role

    @property
    def job_scope(self) -> str | None:
        """Whose jobs the caller sees: its own, or, None, everybody's."""
        return None if self.role is Role.ADMIN else self.name


# Without authentication everybody is one caller, and its jobs are everybody's.
ANONYMOUS = Principal(ANONYMOUS_NAME, Role.SUBMIT)


@dataclass(frozen=True)
class Quotas:
    """Most that one principal may use; None: as much as there is.

    Attributes:
        stored_bytes: of files that it sent or that its jobs made; what jobs make counts and is never refused.
        queued_jobs: that wait.
        running_jobs: at a time; more of them wait.
        requests_per_second: sustained; for a moment, `BURST_SECONDS` times as many.
    """

    stored_bytes: int | None = None
    queued_jobs: int | None = None
    running_jobs: int | None = None
    requests_per_second: int | None = None


@dataclass(frozen=True)
class TlsFiles:
    """Contents of PEM files; `client_ca`: clients must show a certificate that it signed."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None


class TokenBook(Protocol):
    """Knows the principals that hold tokens."""

    def find(self, token: str) -> Principal | None:
        """Returns whose token it is, or None; takes as long either way."""
        ...


def certificate_principal(identity: str) -> Principal | None:
    """Returns the principal of a client certificate that a trusted authority signed; None for an unusable name."""
    if not identity or len(identity) > MAX_IDENTITY_CHARACTERS or not identity.isprintable():
        return None
    return Principal(CERTIFICATE_PREFIX + identity, Role.SUBMIT)


BURST_SECONDS = 2.0


class RateLimiter:
    """A token bucket per principal: `rate` requests per second for long, and twice a second's worth at once.

    Args:
        rate: requests per second.
        monotonic: a clock in seconds.
    """

    def __init__(self, rate: float, monotonic: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = max(1.0, rate * BURST_SECONDS)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        # Per principal: (requests that are left, when that was so).
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> None:
        """Takes one request.

        Raises:
            CapacityError: none is left; it says when there will be one.
        """
        with self._lock:
            now = self._monotonic()
            left, since = self._buckets.pop(name, (self._burst, now))
            left = min(self._burst, left + (now - since) * self._rate)
            is_allowed = left >= 1.0
            left -= 1.0 if is_allowed else 0.0
            self._buckets[name] = (left, now)
            while len(self._buckets) > MAX_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
        if not is_allowed:
            raise CapacityError(
                Reason.RATE_LIMITED,
                f"more than {self._rate:g} requests per second; wait a moment",
                retry_after_seconds=(1.0 - left) / self._rate,
                quota="requests_per_second",
            )
