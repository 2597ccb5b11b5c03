"""What a caller can do with jobs, without grpc: submit, get, list, watch, cancel, delete."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pruning_server.errors import CapacityError, InvalidRequestError, Reason, UnavailableError
from pruning_server.jobs.admission import check_artifacts, check_catalogue, strategy_name, summarize
from pruning_server.jobs.broker import ChangeBroker, Subscription
from pruning_server.jobs.checks import check_summaries
from pruning_server.jobs.continuing import repeat_continuation, resolve_continuation
from pruning_server.jobs.devices import device_type, resolve_device
from pruning_server.jobs.events import Event, Snapshot, StateEvent
from pruning_server.jobs.fetching import NEVER_CANCELLED, NoUris, UriResolver, repeat_uris
from pruning_server.jobs.model import Job, JobState
from pruning_server.jobs.ports import ArtifactStore, CancelToken, Clock, Gate, JobStore, Metrics, ProbeSource
from pruning_server.jobs.probe import Probe
from pruning_server.spec.request import PruningSpec
from pruning_server.spec.validation import check_implemented, check_spec

EVENTS_PER_READ = 200
# A watcher waits for the broker, not for the clock; this only bounds how long it overlooks that its call has ended.
STOP_CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class JobLimits:
    """Bounds of every job. `memory_bytes`: the most that one worker may use; `max_queued_per_owner`: None: no bound."""

    queue_capacity: int = 100
    max_attempts: int = 3
    max_attempts_allowed: int = 10
    memory_bytes: int | None = None
    max_timeout_seconds: float | None = None
    max_queued_per_owner: int | None = None


class RunControl(Protocol):
    """What the service asks of the scheduler."""

    def wake(self) -> None:
        """Looks for a job to run now."""
        ...

    def cancel(self, job_id: str) -> None:
        """Stops the run of this job, if it runs here."""
        ...


class JobService:
    """Jobs of callers, over the ports; every method may be called from any thread."""

    def __init__(  # noqa: PLR0913 - the room's ports, each by its name
        self,
        *,
        store: JobStore,
        artifacts: ArtifactStore,
        gate: Gate,
        probe: ProbeSource,
        runs: RunControl,
        broker: ChangeBroker,
        metrics: Metrics,
        clock: Clock,
        limits: JobLimits,
        uris: UriResolver | None = None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._gate = gate
        self._probe = probe
        self._runs = runs
        self._broker = broker
        self._metrics = metrics
        self._clock = clock
        self._limits = limits
        self._uris = uris or UriResolver(NoUris(), 1)
        self._draining = threading.Event()
        self._cancel_lock = threading.Lock()

    def submit(
        self,
        owner: str,
        request_id: str,
        spec: PruningSpec,
        labels: Mapping[str, str],
        cancelled: CancelToken = NEVER_CANCELLED,
    ) -> Job:
        """Queues a job, once per request_id; `cancelled` ends the fetching of files that it names by URI.

        Raises:
            InvalidRequestError: the spec, a file of it, or how they fit; the violations name the fields.
            NotImplementedFeatureError: this version does not do it.
            AlreadyExistsError: the request_id came before, with another spec.
            CapacityError: the queue is full.
            UnavailableError: the server is starting or draining.
        """
        if not request_id:
            raise InvalidRequestError.for_field("request_id", "is needed; send a new UUID", Reason.MISSING_FIELD)
        check_spec(spec)
        check_implemented(spec)
        earlier = self._store.find_request(owner, request_id)
        if earlier is None:
            self._check_open()
            self._check_room(owner)
            spec = self._resolve(owner, spec, cancelled)
        else:  # whatever has become since of the files, and of the job that it continues from
            spec = repeat_continuation(repeat_uris(spec, earlier.spec), earlier.spec)
        # A repeated call gets its job also when by now the queue is full, the server drains or the files are gone.
        device = self._admit(owner, spec) if earlier is None else earlier.device
        try:
            job, created = self._store.create(
                owner=owner,
                request_id=request_id,
                spec=spec,
                labels=labels,
                device=device,
                max_attempts=self._max_attempts(spec),
                queue_capacity=self._limits.queue_capacity,
                max_queued_per_owner=self._limits.max_queued_per_owner,
            )
        except CapacityError as error:
            self._count_refusal(error)
            raise
        if created:
            self._metrics.job_submitted(strategy_name(spec.strategy))
            self._runs.wake()
        return job

    def validate(
        self,
        owner: str,
        spec: PruningSpec,
        labels: Mapping[str, str],
        cancelled: CancelToken = NEVER_CANCELLED,
        *,
        files_pending: bool = False,
    ) -> Job:
        """Checks everything that can be checked without running; returns a job without an id, and stores none.

        Files that it names by URI are fetched and kept for a while, as the check needs them; with `files_pending` no file
        is looked at.

        Raises:
            the same as `submit`, but for those of the queue and of the request_id.
        """
        check_spec(spec)
        check_implemented(spec)
        self._check_open()
        if not files_pending:
            spec = self._resolve(owner, spec, cancelled)
        return Job(
            job_id="",
            owner=owner,
            request_id="",
            spec=spec,
            device=self._admit(owner, spec, files_pending=files_pending),
            state=JobState.QUEUED,
            attempt=0,
            max_attempts=self._max_attempts(spec),
            create_time=self._clock.now(),
            labels=dict(labels),
        )

    def get(self, owner: str | None, job_id: str) -> Job:
        """Returns the job, or raises NotFoundError; here and below, owner None sees all."""
        return self._store.get(owner, job_id)

    def list(
        self, owner: str | None, states: frozenset[JobState], labels: Mapping[str, str], page_size: int, page_token: str
    ) -> tuple[Sequence[Job], str]:
        """Returns a page, newest first, and the token of the next one (empty: none)."""
        return self._store.list(owner, states, labels, page_size, page_token)

    def cancel(self, owner: str | None, job_id: str) -> Job:
        """Cancels a job: at once if it waits, else as soon as its worker is gone; a job that has ended stays as it is."""
        # One at a time: a job that was not being cancelled before, and is CANCELLED now, waited, and is counted by exactly
        # one caller. It may have run before, and been queued again between the two lines.
        with self._cancel_lock:
            before = self._store.get(owner, job_id)
            after = self._store.request_cancel(owner, job_id)
        if after.state is JobState.CANCELLING:
            self._runs.cancel(job_id)
        elif before.state in {JobState.QUEUED, JobState.RUNNING} and after.state is JobState.CANCELLED:
            self._metrics.job_completed(after, device_type(after.device))
            self._runs.wake()
        return after

    def delete(self, owner: str | None, job_id: str) -> None:
        """Deletes a job that has ended, with its events.

        Raises:
            NotFoundError: there is no such job.
            PreconditionError: it has not ended; cancel it first.
        """
        self._store.delete(owner, job_id)

    def watch(
        self, owner: str | None, job_id: str, after_sequence: int, stop: CancelToken, heartbeat_seconds: float
    ) -> Iterator[Snapshot | Event | None]:
        """Yields a Snapshot, then every event numbered above `after_sequence`, and None when nothing happened for long.

        Ends after the event of a terminal state, or once `stop` is set.

        Raises:
            NotFoundError: there is no such job, or it was deleted meanwhile.
            InvalidRequestError: `after_sequence` is a number that the job has not reached.
        """
        with self._broker.subscribe(job_id) as subscription:
            job = self._store.get(owner, job_id)
            _check_sequence(after_sequence, job)
            yield Snapshot(job=job)
            sequence, ended = after_sequence, job.state.is_terminal and after_sequence == job.last_sequence
            while not (ended or stop.is_set()):
                events = self._store.events_after(job_id, sequence, EVENTS_PER_READ)
                for event in events:
                    yield event
                    sequence, ended = event.sequence, _is_end(event)
                if not events and not self._wait(subscription, stop, heartbeat_seconds):
                    self._store.get(owner, job_id)  # raises if it was deleted meanwhile
                    yield None

    def probe(self, timeout_seconds: float = 30.0) -> Probe:
        """Waits for what the workers of this server can do; UnavailableError if it is not known yet."""
        return self._probe.get(timeout_seconds)

    def drain(self) -> None:
        """Takes no new jobs from now on."""
        self._draining.set()

    def _admit(self, owner: str, spec: PruningSpec, *, files_pending: bool = False) -> str:
        """Checks the request against what is stored and what this server can do; returns the job's device."""
        self._check_limits(spec)
        probe = self._probe.get(30.0)
        device = resolve_device(spec.device, probe)
        check_catalogue(spec, probe)
        if not files_pending:
            check_artifacts(owner, spec, self._artifacts)
            check_summaries(spec, summarize(spec, self._artifacts, self._gate))
        return device

    def _check_open(self) -> None:
        if self._draining.is_set():
            self._metrics.job_rejected("draining")
            raise UnavailableError(Reason.DRAINING, "the server is stopping and takes no new jobs; try again later")

    def _resolve(self, owner: str, spec: PruningSpec, cancelled: CancelToken) -> PruningSpec:
        """The request with every file that it reads as an artifact: URIs are fetched, an earlier job's files found."""
        try:
            spec = self._uris.resolve(owner, spec, cancelled)
        except InvalidRequestError as error:
            if error.reason is Reason.URI_DENIED:
                self._metrics.job_rejected("uri_denied")
            raise
        return resolve_continuation(owner, spec, self._store, self._artifacts)

    def _check_room(self, owner: str) -> None:
        """Turns away what has no room before any work is done for it; `create` says the last word."""
        try:
            self._store.check_capacity(owner, self._limits.queue_capacity, self._limits.max_queued_per_owner)
        except CapacityError as error:
            self._count_refusal(error)
            raise

    def _count_refusal(self, error: CapacityError) -> None:
        if error.reason is Reason.QUEUE_FULL:
            self._metrics.job_rejected("queue_full")
        elif error.reason is Reason.QUOTA_EXCEEDED:
            self._metrics.job_rejected("quota")

    def _check_limits(self, spec: PruningSpec) -> None:
        for field, asked, most, unit in (
            ("spec.limits.memory_bytes", spec.limits.memory_bytes, self._limits.memory_bytes, " bytes"),
            ("spec.limits.max_attempts", spec.limits.max_attempts, self._limits.max_attempts_allowed, ""),
            ("spec.timeout", spec.timeout_seconds, self._limits.max_timeout_seconds, " seconds"),
        ):
            if asked is not None and most is not None and asked > most:
                raise InvalidRequestError.for_field(
                    field, f"at most {most}{unit} on this server, the request has {asked}"
                )

    def _max_attempts(self, spec: PruningSpec) -> int:
        return spec.limits.max_attempts or self._limits.max_attempts

    def _wait(self, subscription: Subscription, stop: CancelToken, heartbeat_seconds: float) -> bool:
        """Waits for news; returns False when a heartbeat is due instead."""
        due = self._clock.monotonic() + heartbeat_seconds
        while not stop.is_set():
            left = due - self._clock.monotonic()
            if left <= 0:
                return False
            if subscription.wait(min(left, STOP_CHECK_SECONDS)):
                return True
        return True


def _check_sequence(after_sequence: int, job: Job) -> None:
    if not 0 <= after_sequence <= job.last_sequence:
        raise InvalidRequestError.for_field(
            "after_sequence", f"must be between 0 and {job.last_sequence}, the latest event of this job"
        )


def _is_end(event: Event) -> bool:
    return isinstance(event.payload, StateEvent) and event.payload.state.is_terminal
