"""Roles, names and rates."""

from __future__ import annotations

import pytest

from helpers.stores import ManualClock
from pruning_server.errors import CapacityError
from pruning_server.jobs.access import MAX_BUCKETS, PRINCIPAL_NAME, RateLimiter, Role, certificate_principal


def test_each_role_may_do_what_those_before_it_may() -> None:
    roles = list(Role)
    assert roles == [Role.READ, Role.SUBMIT, Role.ADMIN]
    for index, role in enumerate(roles):
        assert [role.allows(needed) for needed in roles] == [place <= index for place in range(len(roles))]


def test_no_token_can_have_the_name_of_a_certificate() -> None:
    found = certificate_principal("alice")
    assert found is not None
    assert PRINCIPAL_NAME.fullmatch(found.name) is None
    assert [certificate_principal(name) for name in ("", "a\nb", "x" * 257)] == [None] * 3


def allowed(limiter: RateLimiter, name: str, count: int) -> int:
    """How many of so many requests at once go through."""
    passed = 0
    for _ in range(count):
        try:
            limiter.take(name)
        except CapacityError:
            continue
        passed += 1
    return passed


@pytest.mark.parametrize("rate", [0.5, 1.0, 10.0, 1000.0])
def test_a_rate_holds_for_long_and_twice_as_much_for_a_moment(rate: float) -> None:
    clock = ManualClock()
    limiter = RateLimiter(rate, clock.monotonic)
    assert allowed(limiter, "a", 5000) == max(1, int(2 * rate))
    with pytest.raises(CapacityError) as caught:
        limiter.take("a")
    wait = caught.value.retry_after_seconds
    assert wait is not None
    assert 0 < wait <= 1 / rate + 1e-9
    clock.advance(wait + 1e-6)
    limiter.take("a")
    passed = 0
    for _ in range(200):
        clock.advance(0.1)
        passed += allowed(limiter, "a", 500)
    assert passed == pytest.approx(20 * rate, abs=2)
    assert allowed(limiter, "b", 1) == 1, "another caller's bucket is full"


def test_a_refused_request_costs_nothing() -> None:
    clock = ManualClock()
    limiter = RateLimiter(1.0, clock.monotonic)
    allowed(limiter, "a", 1000)
    clock.advance(1.0)
    assert allowed(limiter, "a", 10) == 1


def test_the_number_of_buckets_is_bounded() -> None:
    limiter = RateLimiter(1.0, ManualClock().monotonic)
    for number in range(MAX_BUCKETS + 10):
        limiter.take(f"caller-{number}")
    assert len(limiter._buckets) == MAX_BUCKETS
