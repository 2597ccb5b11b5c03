"""What clients were told, and what follows from it; pure, so that its own tests need no server."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

AnyFact = TypeVar("AnyFact", bound="Fact")
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that a client asked for or was told. `begin` and `end`: when, as numbers of one clock."""

    subject: str
    begin: int = 0
    end: int = 0


@dataclass(frozen=True, kw_only=True)
class JobMade(Fact):
    """The server acknowledged the job `subject` for a request."""

    request_id: str


@dataclass(frozen=True, kw_only=True)
class JobSeen(Fact):
    """The job `subject` was in this state."""

    state: str
    attempt: int
    max_attempts: int


@dataclass(frozen=True, kw_only=True)
class Watched(Fact):
    """What one watch of the job `subject` said after number `after`: (number, content, state or "") each."""

    after: int
    events: tuple[tuple[int, str, str], ...]
    is_whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Stored(Fact):
    """The artifact `subject` was acknowledged as complete, with this hash."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class Fetched(Fact):
    """The bytes of the artifact `subject` had this hash."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class Deleting(Fact):
    """Somebody asked to delete the job or artifact `subject`; from `begin` on it may be gone."""


@dataclass(frozen=True, kw_only=True)
class Missing(Fact):
    """The server said that there is no job or artifact `subject`."""


@dataclass(frozen=True, kw_only=True)
class Listed(Fact):
    """All jobs of a whole list; `subject` is empty."""

    jobs: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Broken(Fact):
    """Something that is a violation by itself: a process that outlived its server, a file that nobody owns."""


@dataclass
class History:
    """Facts in the order in which they were recorded; safe to use from any thread."""

    facts: list[Fact] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ticks: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def tick(self) -> int:
        """The next moment."""
        with self._lock:
            return next(self._ticks)

    @contextmanager
    def call(self) -> Iterator[Callable[[Fact], None]]:
        """Around one call: what it is given to record began before the call and ends as it is recorded."""
        begin = self.tick()

        def record(fact: Fact) -> None:
            with self._lock:
                self.facts.append(replace(fact, begin=begin, end=next(self._ticks)))

        yield record


def violations(facts: Sequence[Fact]) -> list[str]:
    """Every promise that the history breaks, in words."""
    return [
        *_lost(facts, JobMade, "job"),
        *_lost(facts, Stored, "artifact"),
        *_left_out(facts),
        *_ended_twice(facts),
        *_numbers(facts),
        *_whole_histories(facts),
        *_requests(facts),
        *_contents(facts),
        *(f"attempts: job {f.subject}: {f.attempt} of {f.max_attempts}" for f in _of(facts, JobSeen) if f.attempt > f.max_attempts),
        *(f.subject for f in _of(facts, Broken)),
    ]  # fmt: skip


def _of(facts: Iterable[Fact], kind: type[AnyFact]) -> Iterator[AnyFact]:
    return (fact for fact in facts if isinstance(fact, kind))


def _first(facts: Iterable[Fact]) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    for fact in facts:
        found.setdefault(fact.subject, fact)
    return found


def _lost(facts: Sequence[Fact], made: type[Fact], what: str) -> Iterator[str]:
    acknowledged, deleting = _first(_of(facts, made)), _first(_of(facts, Deleting))
    for fact in _of(facts, Missing):
        promise, wish = acknowledged.get(fact.subject), deleting.get(fact.subject)
        if promise is not None and promise.end < fact.begin and (wish is None or wish.begin > fact.end):
            yield f"lost {what} {fact.subject}: acknowledged at {promise.end}, missing at {fact.begin}"


def _left_out(facts: Sequence[Fact]) -> Iterator[str]:
    deleting = _first(_of(facts, Deleting))
    made = _first(_of(facts, JobMade)).values()
    for fact in _of(facts, Listed):
        for job in made:
            wish = deleting.get(job.subject)
            if job.end < fact.begin and job.subject not in fact.jobs and (wish is None or wish.begin > fact.end):
                yield f"lost job {job.subject}: acknowledged at {job.end}, not in the list of {fact.begin}"


def _ended_twice(facts: Sequence[Fact]) -> Iterator[str]:
    first: dict[str, JobSeen] = {}
    for fact in sorted(_of(facts, JobSeen), key=lambda seen: seen.end):
        earlier = first.get(fact.subject)
        if earlier is not None and earlier.end < fact.begin and fact.state != earlier.state:
            yield f"terminal state of job {fact.subject} changed: {earlier.state}, then {fact.state}"
        if fact.state in TERMINAL:
            first.setdefault(fact.subject, fact)


def _numbers(facts: Sequence[Fact]) -> Iterator[str]:
    """Every watch is gap-free, and a number never means two things."""
    known: dict[tuple[str, int], str] = {}
    for fact in _of(facts, Watched):
        numbers = [number for number, _, _ in fact.events]
        if numbers != list(range(fact.after + 1, fact.after + 1 + len(numbers))):
            yield f"events of job {fact.subject} have gaps: after {fact.after} came {numbers}"
        for number, content, _ in fact.events:
            if known.setdefault((fact.subject, number), content) != content:
                yield f"event {number} of job {fact.subject} was shown as two things"


def _whole_histories(facts: Sequence[Fact]) -> Iterator[str]:
    """At the end: one terminal state, the last of all, as many RUNNING as attempts, and nothing that was seen is gone."""
    seen: dict[str, int] = defaultdict(int)
    for fact in _of(facts, Watched):
        seen[fact.subject] = max([seen[fact.subject], *(number for number, _, _ in fact.events)])
    last = {fact.subject: fact for fact in _of(facts, JobSeen)}
    for fact in _of(facts, Watched):
        if not fact.is_whole:
            continue
        states, job = [state for _, _, state in fact.events if state], last[fact.subject]
        if sum(state in TERMINAL for state in states) != 1 or states[-1] not in TERMINAL or states[-1] != job.state:
            yield f"job {fact.subject} is {job.state} after the states {states}"
        if states.count("RUNNING") != job.attempt:
            yield f"attempts: job {fact.subject}: {job.attempt} after the states {states}"
        if len(fact.events) < seen[fact.subject]:
            yield f"lost event {seen[fact.subject]} of job {fact.subject}: it ends with {len(fact.events)}"


def _requests(facts: Sequence[Fact]) -> Iterator[str]:
    deleted = {fact.subject for fact in _of(facts, Deleting)}
    jobs: dict[str, set[str]] = defaultdict(set)
    for fact in _of(facts, JobMade):
        jobs[fact.request_id].add(fact.subject)
    for request_id, made in jobs.items():
        # A request whose job was deleted may make another one.
        if len(made - deleted) > 1:
            yield f"request {request_id} made the jobs {sorted(made)}"


def _contents(facts: Sequence[Fact]) -> Iterator[str]:
    stored = {fact.subject: fact.sha256 for fact in _of(facts, Stored)}
    for fact in _of(facts, Fetched):
        if stored.get(fact.subject, fact.sha256) != fact.sha256:
            yield f"artifact {fact.subject} came back with other bytes"
