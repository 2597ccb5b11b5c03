"""The checker itself: an honest history breaks nothing, and each broken promise is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.chaos.history import (
    Broken,
    Deleting,
    Fact,
    Fetched,
    JobMade,
    JobSeen,
    Listed,
    Missing,
    Stored,
    Watched,
    violations,
)

EVENTS = ((1, "a", "QUEUED"), (2, "b", "RUNNING"), (3, "c", ""), (4, "d", "SUCCEEDED"))


def seen(state: str, attempt: int = 1) -> JobSeen:
    return JobSeen(subject="job", state=state, attempt=attempt, max_attempts=3)


def watched(*events: tuple[int, str, str], after: int = 0, is_whole: bool = False) -> Watched:
    return Watched(subject="job", after=after, events=events, is_whole=is_whole)


HONEST: tuple[Fact, ...] = (
    JobMade(subject="job", request_id="r"),
    seen("QUEUED", 0),
    watched(*EVENTS[:2]),
    JobMade(subject="job", request_id="r"),
    Listed(subject="", jobs=frozenset({"job"})),
    Stored(subject="file", sha256="1"),
    Fetched(subject="file", sha256="1"),
    seen("SUCCEEDED"),
    watched(*EVENTS[2:], after=2),
    watched(*EVENTS, is_whole=True),
    Deleting(subject="file"),
    Missing(subject="file"),
    Missing(subject="never made"),
)


def found(*facts: Fact) -> list[str]:
    """What is found if each of these calls began after the one before had ended."""
    return violations([replace(fact, begin=2 * n, end=2 * n + 1) for n, fact in enumerate(facts)])


def test_an_honest_history_breaks_nothing() -> None:
    assert found(*HONEST) == []


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ((Missing(subject="job"),), "lost job"),
        ((Listed(subject="", jobs=frozenset()),), "lost job"),
        ((Stored(subject="other", sha256="2"), Missing(subject="other")), "lost artifact"),
        ((seen("CANCELLED"),), "changed"),
        ((seen("RUNNING"),), "changed"),
        ((watched(EVENTS[0], EVENTS[2]),), "gaps"),
        ((watched((3, "c", ""), after=1),), "gaps"),
        ((watched((1, "z", "QUEUED")),), "two things"),
        ((watched((5, "e", ""), after=4), watched(*EVENTS, is_whole=True)), "lost event"),
        ((watched(*EVENTS, (5, "e", "FAILED"), is_whole=True),), "after the states"),
        ((watched(*EVENTS[:3], is_whole=True),), "after the states"),
        ((seen("SUCCEEDED", 2), watched(*EVENTS, is_whole=True)), "attempts"),
        ((seen("SUCCEEDED", 4),), "attempts"),
        ((JobMade(subject="twin", request_id="r"),), "made the jobs"),
        ((Fetched(subject="file", sha256="3"),), "other bytes"),
        ((Broken(subject="process 7 outlives its server"),), "outlives"),
    ],
)
def test_each_broken_promise_is_found(facts: tuple[Fact, ...], word: str) -> None:
    assert any(word in text for text in found(*HONEST, *facts))


def test_what_went_on_at_the_same_time_may_have_come_in_either_order() -> None:
    made = replace(JobMade(subject="job", request_id="r"), begin=1, end=4)
    assert violations([made, replace(Listed(subject="", jobs=frozenset()), begin=2, end=3)]) == []
    assert violations([made, replace(Listed(subject="", jobs=frozenset()), begin=5, end=6)]) != []
