"""The SQLite job store: a model check with reopenings, the bounds on events, and what the tables themselves refuse."""

from __future__ import annotations

import dataclasses
import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helpers.stores import (
    FAILURE,
    OWNER,
    RESULT,
    RETENTION_SECONDS,
    STRANGER,
    ManualClock,
    create_job,
    open_sqlite,
    spec_for,
)
from pruning_server.adapters.database import Database
from pruning_server.adapters.job_store import SqliteJobStore
from pruning_server.adapters.migrations import load_migrations
from pruning_server.errors import AlreadyExistsError, CapacityError, NotFoundError, PreconditionError
from pruning_server.jobs.events import LogEvent, ProgressEvent, Severity, StateEvent
from pruning_server.jobs.model import TRANSITIONS, JobState, Progress
from pruning_server.spec.base import to_json
from pruning_server.spec.phases import Phase

CAPACITY = 4
LINE = LogEvent(severity=Severity.INFO, message="line")


# --- The model check --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class ModelJob:
    """What a job must be, in plain Python."""

    request_id: str
    device: str
    max_attempts: int
    sparsity: float
    state: JobState = JobState.QUEUED
    attempt: int = 0
    lease: str | None = None
    events: int = 1
    states: list[JobState] = dataclasses.field(default_factory=lambda: [JobState.QUEUED])
    expire_time: float | None = None

    def enter(self, state: JobState, now: float) -> None:
        self.state = state
        self.states.append(state)
        self.events += 1
        if state not in {JobState.RUNNING, JobState.CANCELLING}:
            self.lease = None
        if state.is_terminal:
            self.expire_time = now + RETENTION_SECONDS


class StoreMachine(RuleBasedStateMachine):
    """Random calls on the real store and on the model; they must agree, also after the database is reopened."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.model: dict[str, ModelJob] = {}
        self.server = 0

    @initialize()
    def start(self) -> None:
        self.open()

    def open(self) -> None:
        self.database = Database(Path(self.folder.name) / "server.db")
        self.store = SqliteJobStore(self.database, self.clock, RETENTION_SECONDS)

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    def pick(self, data: st.DataObject, *states: JobState) -> str | None:
        ids = [job_id for job_id, job in self.model.items() if not states or job.state in states]
        return data.draw(st.sampled_from(ids)) if ids else None

    @rule(
        request_id=st.sampled_from("abcdefgh"),
        device=st.sampled_from(["cpu", "cuda", "cuda:0", "cuda:1"]),
        max_attempts=st.integers(1, 3),
        sparsity=st.sampled_from([0.1, 0.9]),
    )
    def create(self, request_id: str, device: str, max_attempts: int, sparsity: float) -> None:
        earlier = next((i for i, job in self.model.items() if job.request_id == request_id), None)
        queued = sum(job.state is JobState.QUEUED for job in self.model.values())
        try:
            job, created = create_job(
                self.store,
                request_id,
                device=device,
                max_attempts=max_attempts,
                spec=spec_for(sparsity=sparsity),
                queue_capacity=CAPACITY,
            )
        except AlreadyExistsError:
            assert earlier is not None
            assert self.model[earlier].sparsity != sparsity
        except CapacityError:
            assert earlier is None
            assert queued >= CAPACITY
        else:
            assert created == (earlier is None)
            if created:
                assert queued < CAPACITY
                self.model[job.job_id] = ModelJob(request_id, device, max_attempts, sparsity)
            else:
                assert job.job_id == earlier
                assert self.model[job.job_id].sparsity == sparsity

    @rule(free=st.lists(st.sampled_from(["cpu", "cuda:0", "cuda:1"]), unique=True))
    def claim(self, free: list[str]) -> None:
        expected = next(
            (
                job_id
                for job_id, job in self.model.items()  # in order of submission
                if job.state is JobState.QUEUED
                and (job.device in free or (job.device == "cuda" and any(device != "cpu" for device in free)))
            ),
            None,
        )
        claimed = self.store.claim(free, f"server-{self.server}")
        assert (None if claimed is None else claimed[0].job_id) == expected
        if claimed is not None and expected is not None:
            assert claimed[1] in free
            assert claimed[1].startswith(self.model[expected].device)
            self.model[expected].enter(JobState.RUNNING, self.clock.time)
            self.model[expected].attempt += 1
            self.model[expected].lease = f"server-{self.server}"

    @rule(data=st.data(), late=st.booleans(), progress=st.booleans())
    def append(self, data: st.DataObject, late: bool, progress: bool) -> None:
        job_id = self.pick(data)
        if job_id is None:
            return
        job = self.model[job_id]
        payload = ProgressEvent(progress=Progress(phase=Phase.LOAD, fraction=0.1)) if progress else LINE
        event = self.store.append_event(job_id, job.attempt - late, payload)
        assert (event is not None) == (job.lease is not None and not late)
        if event is not None:
            job.events += 1
            assert event.sequence == job.events

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = self.pick(data)
        if job_id is None:
            return
        job = self.model[job_id]
        self.store.request_cancel(OWNER, job_id)
        if job.state is JobState.QUEUED:
            job.enter(JobState.CANCELLED, self.clock.time)
        elif job.state is JobState.RUNNING:
            job.enter(JobState.CANCELLING, self.clock.time)

    @rule(
        data=st.data(),
        ending=st.sampled_from(["succeed", "fail", "retry", "release"]),
        late=st.integers(0, 1),
        running_only=st.booleans(),
    )
    def end(self, data: st.DataObject, ending: str, late: int, running_only: bool) -> None:
        job_id = self.pick(data, *([JobState.RUNNING, JobState.CANCELLING] if running_only else []))
        if job_id is None:
            return
        job, attempt = self.model[job_id], self.model[job_id].attempt - late
        match ending:
            case "succeed":
                self.store.succeed(job_id, attempt, RESULT)
            case "release":
                self.store.release(job_id, attempt, FAILURE)
            case _:
                self.store.fail(job_id, attempt, FAILURE, retry=ending == "retry")
        if late or job.lease is None:
            return
        self.settle(job, ending)

    def settle(self, job: ModelJob, ending: str) -> None:
        if job.state is JobState.CANCELLING:
            job.enter(JobState.CANCELLED, self.clock.time)
        elif ending == "succeed":
            job.enter(JobState.SUCCEEDED, self.clock.time)
        elif ending == "release":
            job.max_attempts += 1
            job.enter(JobState.QUEUED, self.clock.time)
        elif ending == "retry" and job.attempt < job.max_attempts:
            job.enter(JobState.QUEUED, self.clock.time)
        else:
            job.enter(JobState.FAILED, self.clock.time)

    @rule()
    def reopen(self) -> None:
        """The server stops and starts: nothing changes but the connection."""
        self.database.close()
        self.open()

    @rule()
    def crash(self) -> None:
        """The server dies without closing anything; another one recovers."""
        dead = self.database
        self.open()
        self.server += 1
        settled = self.store.recover(f"server-{self.server}")
        dead.close()
        expected = {job_id for job_id, job in self.model.items() if job.lease is not None}
        assert {job.job_id for job in settled} == expected
        for job_id in expected:
            self.settle(self.model[job_id], "retry")

    @rule(devices=st.lists(st.sampled_from(["cpu", "cuda:0", "cuda:1"]), unique=True, min_size=1))
    def lose_devices(self, devices: list[str]) -> None:
        failed = {job.job_id for job in self.store.fail_unservable(devices, FAILURE)}
        for job_id, job in self.model.items():
            servable = job.device in devices or (job.device == "cuda" and any(device != "cpu" for device in devices))
            assert (job_id in failed) == (job.state is JobState.QUEUED and not servable)
            if job_id in failed:
                job.enter(JobState.FAILED, self.clock.time)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        job_id = self.pick(data)
        if job_id is None:
            return
        if self.model[job_id].state.is_terminal:
            self.store.delete(OWNER, job_id)
            del self.model[job_id]
            with pytest.raises(NotFoundError):
                self.store.get(OWNER, job_id)
        else:
            with pytest.raises(PreconditionError):
                self.store.delete(OWNER, job_id)

    @rule(share=st.sampled_from([0.0, 0.3, 1.0]))
    def wait_and_expire(self, share: float) -> None:
        self.clock.advance(share * RETENTION_SECONDS)
        expired = [
            job_id
            for job_id, job in self.model.items()
            if job.expire_time is not None and job.expire_time <= self.clock.time
        ]
        assert self.store.delete_expired() == len(expired)
        for job_id in expired:
            del self.model[job_id]

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def agrees(self) -> None:
        listed, token = self.store.list(OWNER, frozenset(), {}, 1000, "")
        assert token == ""
        assert {job.job_id for job in listed} == self.model.keys()
        for job in listed:
            expected = self.model[job.job_id]
            assert (job.state, job.attempt, job.max_attempts) == (
                expected.state,
                expected.attempt,
                expected.max_attempts,
            )
            assert job.expire_time == expected.expire_time
            assert job.last_sequence == expected.events
            events = self.store.events_after(job.job_id, 0, 10_000)
            assert [event.sequence for event in events] == list(range(1, expected.events + 1))
            states = [event.payload.state for event in events if isinstance(event.payload, StateEvent)]
            assert states == expected.states
            assert all(after in TRANSITIONS[before] for before, after in itertools.pairwise(states))
        counts = self.store.counts_by_state()
        assert counts == {state: sum(job.state is state for job in self.model.values()) for state in JobState}


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# --- Bounds on events -------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "server.db")
    yield database
    database.close()


def bounded(database: Database, clock: ManualClock, announced: list[str]) -> SqliteJobStore:
    return SqliteJobStore(
        database,
        clock,
        RETENTION_SECONDS,
        on_change=announced.append,
        max_log_events_per_job=5,
        max_progress_events_per_attempt=4,
    )


def progress(fraction: float) -> ProgressEvent:
    return ProgressEvent(progress=Progress(phase=Phase.RECOVER, fraction=fraction))


def test_log_lines_are_bounded_and_the_last_one_says_so(database: Database, clock: ManualClock) -> None:
    announced: list[str] = []
    store = bounded(database, clock, announced)
    job, _ = create_job(store)
    store.claim(("cpu",), "server-1")
    for _ in range(5):
        store.append_event(job.job_id, 1, LINE)
    store.fail(job.job_id, 1, FAILURE, retry=True)
    store.claim(("cpu",), "server-1")
    kept = store.append_event(job.job_id, 2, LINE)
    news = len(announced)
    dropped = [store.append_event(job.job_id, 2, LINE) for _ in range(3)]
    events = store.events_after(job.job_id, 0, 100)
    assert [event.sequence for event in events] == list(range(1, 2 + 5 + 2 + 1 + 1))
    assert kept == events[-1]
    assert isinstance(events[-1].payload, LogEvent)
    assert events[-1].payload.severity is Severity.WARNING
    assert "5" in events[-1].payload.message
    assert dropped == [events[-1]] * 3, "the run goes on, so this is not None"
    assert len(announced) == news, "nothing new, nothing announced"
    assert store.append_event(job.job_id, 2, progress(0.5)) is not None


def test_progress_gets_sparse_and_the_job_always_has_the_latest(database: Database, clock: ManualClock) -> None:
    announced: list[str] = []
    store = bounded(database, clock, announced)
    job, _ = create_job(store)
    store.claim(("cpu",), "server-1")
    for step in range(20):
        clock.advance(1)
        store.append_event(job.job_id, 1, progress(step / 100))
    assert store.get(OWNER, job.job_id).progress == progress(0.19).progress
    assert store.get(OWNER, job.job_id).last_sequence == 2 + 4
    clock.advance(30)
    store.append_event(job.job_id, 1, progress(0.5))
    store.append_event(job.job_id, 1, progress(0.6))
    events = store.events_after(job.job_id, 0, 100)
    assert [event.sequence for event in events] == list(range(1, 8))
    assert events[-1].payload == progress(0.5)
    assert announced == [job.job_id] * 7
    store.fail(job.job_id, 1, FAILURE, retry=True)
    store.claim(("cpu",), "server-1")
    assert store.append_event(job.job_id, 2, progress(0.0)) == store.events_after(job.job_id, 9, 1)[0]


# --- What the tables refuse even if the code were wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET state = 'RUNNING', lease_owner = 'x', end_time = NULL",
        "UPDATE jobs SET result = NULL",
        "UPDATE jobs SET last_sequence = last_sequence + 1",
    ],
)
def test_a_job_that_has_ended_cannot_be_changed_by_any_statement(
    database: Database, clock: ManualClock, statement: str
) -> None:
    store = bounded(database, clock, [])
    job, _ = create_job(store)
    store.claim(("cpu",), "server-1")
    done = store.succeed(job.job_id, 1, RESULT)
    with pytest.raises(sqlite3.IntegrityError, match="never changed"), database.write() as connection:
        connection.execute(statement)
    assert store.get(OWNER, job.job_id) == done


def test_event_numbers_and_requests_are_unique(database: Database, clock: ManualClock) -> None:
    store = bounded(database, clock, [])
    job, _ = create_job(store)
    for statement in (
        "INSERT INTO events SELECT job_id, sequence, time, payload FROM events",
        "INSERT INTO events VALUES ('unknown job', 1, 0, '{}')",
        (
            "INSERT INTO jobs SELECT NULL, 'other', owner, request_id, spec, labels, device, state, attempt, max_attempts,"
            " create_time, NULL, NULL, NULL, NULL, NULL, NULL, 1, NULL, NULL, 0, 0, 0 FROM jobs"
        ),
    ):
        with pytest.raises(sqlite3.IntegrityError), database.write() as connection:
            connection.execute(statement)
    assert store.get(OWNER, job.job_id) == job


def test_deleting_a_job_leaves_no_row_of_it(tmp_path: Path, clock: ManualClock) -> None:
    stores = open_sqlite(tmp_path, clock)
    job = stores.run()
    stores.jobs.append_event(job.job_id, 1, LINE)
    stores.jobs.succeed(job.job_id, 1, RESULT)
    stores.jobs.delete(OWNER, job.job_id)
    stores.close()
    raw = sqlite3.connect(tmp_path / "server.db")
    for table in ("jobs", "events", "job_artifacts"):
        assert raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0, table
    raw.close()


def test_a_database_of_the_first_schema_keeps_its_jobs(tmp_path: Path) -> None:
    """The queue's turns and priorities came later; what waited then is served."""
    path, clock = tmp_path / "server.db", ManualClock()
    old = Database(path, migrations=load_migrations()[:1])
    with old.write() as connection:
        for number, owner in enumerate((OWNER, OWNER, STRANGER)):
            connection.execute(
                "INSERT INTO jobs (job_id, owner, request_id, spec, labels, device, state, attempt, max_attempts,"
                " create_time, last_sequence) VALUES (?, ?, ?, ?, '{}', 'cpu', 'QUEUED', 0, 3, 1.0, 1)",
                (f"job{number}", owner, f"r{number}", to_json(spec_for()).decode()),
            )
    old.close()
    database = Database(path)
    jobs = SqliteJobStore(database, clock, 1.0)
    claimed = [jobs.claim(("cpu",), "server-1") for _ in range(3)]
    assert [claim[0].job_id for claim in claimed if claim is not None] == ["job0", "job2", "job1"]
    database.close()
