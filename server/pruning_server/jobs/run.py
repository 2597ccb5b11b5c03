"""One run of one job: the worker's messages become durable events and metrics, the outcome becomes a state."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence

from pruning_server.errors import NotFoundError, Reason
from pruning_server.jobs.admission import strategy_name
from pruning_server.jobs.devices import device_type
from pruning_server.jobs.events import (
    CountersAdded,
    Event,
    LogEvent,
    LogWritten,
    PhaseFinished,
    PhaseStarted,
    ProgressEvent,
    ProgressMade,
    RunSucceeded,
    StateEvent,
    WorkerAlive,
    WorkerMessage,
)
from pruning_server.jobs.model import Failure, Job, JobState, Progress
from pruning_server.jobs.ports import Clock, Executor, JobStore, Metrics, RunOutcome
from pruning_server.spec.phases import Phase

PROGRESS_INTERVAL_SECONDS = 0.5
# Every epoch is worth an event, unless epochs take milliseconds: each event is a durable transaction.
EPOCH_INTERVAL_SECONDS = 0.05
MAX_LOG_CHARACTERS = 4000
MAX_METRICS = 32
MAX_METRIC_CHARACTERS = 100
SETTLE_BACKOFF_SECONDS = (0.1, 0.5, 2.0, 10.0)

STOPPED_MESSAGE = "The server was stopped while the job ran; the job is queued again and this run is not counted."

_log = logging.getLogger(__name__)


class ProgressRecorder:
    """Thins a worker's progress out to what is worth storing: about 2 per second, every phase, and every epoch that takes its time."""

    def __init__(self, store: JobStore, clock: Clock, job: Job) -> None:
        self._store = store
        self._clock = clock
        self._job = job
        self._latest: Progress | None = None
        self._stored: Progress | None = None
        self._stored_at = -math.inf

    def phase(self, phase: Phase) -> None:
        """Records that the run entered `phase`."""
        latest = self._latest
        fraction, metrics = (latest.fraction, latest.metrics) if latest else (0.0, {})
        self.progress(Progress(phase=phase, fraction=fraction, metrics=metrics))

    def progress(self, progress: Progress) -> None:
        """Records progress; `fraction` never goes back within a run."""
        floor = self._latest.fraction if self._latest else 0.0
        self._latest = _sound(progress, floor)
        stored = self._stored
        if stored is None or stored.phase is not progress.phase:
            self.flush()
        elif stored.epoch != progress.epoch:
            self.flush_if_due(EPOCH_INTERVAL_SECONDS)
        else:
            self.flush_if_due()

    def flush_if_due(self, interval_seconds: float = PROGRESS_INTERVAL_SECONDS) -> None:
        """Stores the latest progress if the last one was stored long enough ago."""
        if self._clock.monotonic() - self._stored_at >= interval_seconds:
            self.flush()

    def flush(self) -> None:
        """Stores the latest progress, if it is not stored yet."""
        if self._latest is None or self._latest == self._stored:
            return
        self._store.append_event(self._job.job_id, self._job.attempt, ProgressEvent(progress=self._latest))
        self._stored, self._stored_at = self._latest, self._clock.monotonic()


class Run:
    """One run of a job on a device; `execute` belongs to one thread, the rest may be called from any."""

    def __init__(
        self, job: Job, device: str, *, store: JobStore, executor: Executor, metrics: Metrics, clock: Clock
    ) -> None:
        self.job = job
        self.device = device
        self._store = store
        self._executor = executor
        self._metrics = metrics
        self._clock = clock
        self._stop = threading.Event()
        self._released = threading.Event()
        self._cancelled_at: float | None = None
        self._recorder = ProgressRecorder(store, clock, job)
        self._heard_at: float | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether its worker is being ended."""
        return self._stop.is_set()

    def silence_seconds(self) -> float:
        """How long ago the worker's last message came; 0 before the first."""
        return 0.0 if self._heard_at is None else max(0.0, self._clock.monotonic() - self._heard_at)

    def cancel(self) -> None:
        """Stops the worker because the caller asked for it; idempotent."""
        if self._cancelled_at is None:
            self._cancelled_at = self._clock.monotonic()
        self._stop.set()

    def release(self) -> None:
        """Stops the worker because the server stops; the job is queued again, and the run not counted."""
        self._released.set()
        self._stop.set()

    def execute(self) -> Job | None:
        """Runs the job to its end and settles it; returns it as settled, or None if the store could not be reached."""
        outcome = self._run()
        if outcome.failure is not None and not self._stop.is_set():
            _log.warning(
                "job %s attempt %d failed: %s %s",
                self.job.job_id,
                self.job.attempt,
                outcome.failure.reason.value,
                outcome.failure.message,
            )
        return self._settle(outcome)

    def _run(self) -> RunOutcome:
        try:
            self._metrics.job_started(self._queue_wait_seconds(), device_type(self.device))
            # A cancel that came between the claim and this line found no run to stop; the store knows of it.
            if self._store.get(None, self.job.job_id).state is JobState.CANCELLING:
                self.cancel()
            outcome = self._executor.run(self.job, self.device, self.on_message, self._stop)
        except Exception:  # noqa: BLE001 - see below
            # The executor answers for everything that a worker does; what is left is a fault of the server or of its
            # disk. It must cost this run, not the server, and the job must not stay RUNNING for ever.
            _log.exception("job %s attempt %d: the run broke", self.job.job_id, self.job.attempt)
            message = "The server could not carry out this run; its log has the details. Try again."
            failure = Failure(reason=Reason.INTERNAL, message=message)
            return RunOutcome(result=None, failure=failure, retryable=True, exit_cause="lost")
        self._metrics.worker_exited(outcome.exit_cause)
        return outcome

    # --- messages -----------------------------------------------------------------------------------------------------

    def on_message(self, message: WorkerMessage) -> None:
        """Turns one message of the worker into events and metrics."""
        self._heard_at = self._clock.monotonic()
        try:
            self._record(message)
        except Exception:  # noqa: BLE001 - see below
            # A database that is locked or full for a moment may cost an event, but not the hours that a run has taken.
            # The outcome is written again and again instead.
            _log.exception("job %s attempt %d: an event is lost", self.job.job_id, self.job.attempt)

    def _record(self, message: WorkerMessage) -> None:
        match message:
            case PhaseStarted(phase=phase):
                self._recorder.phase(phase)
            case PhaseFinished(phase=phase, seconds=seconds):
                self._metrics.phase_finished(phase, max(0.0, seconds))
            case ProgressMade(progress=progress):
                self._recorder.progress(progress)
            case LogWritten(severity=severity, text=text):
                self._recorder.flush()
                line = LogEvent(severity=severity, message=_printable(text))
                self._store.append_event(self.job.job_id, self.job.attempt, line)
            case CountersAdded() | WorkerAlive() | RunSucceeded():
                self._recorder.flush_if_due()
                strategy = strategy_name(self.job.spec.strategy)
                self._metrics.worker_message(message, strategy, device_type(self.device))
            case _:
                pass  # How a run ends is the executor's to judge.

    # --- outcome ------------------------------------------------------------------------------------------------------

    def _settle(self, outcome: RunOutcome) -> Job | None:
        """Writes the outcome, again and again while the store fails: a job that is not settled would hang for ever."""
        tries = 0
        while True:
            try:
                return self._write(outcome)
            except NotFoundError:
                return None
            except Exception:  # noqa: BLE001 - see below
                # A locked or full database is the usual cause and may pass. When the server is stopping it is left to
                # `recover` at the next start, which settles what is still RUNNING.
                _log.exception("job %s attempt %d: cannot write its outcome", self.job.job_id, self.job.attempt)
            if self._released.wait(SETTLE_BACKOFF_SECONDS[min(tries, len(SETTLE_BACKOFF_SECONDS) - 1)]) and tries > 1:
                return None
            tries += 1

    def _write(self, outcome: RunOutcome) -> Job:
        job_id, attempt = self.job.job_id, self.job.attempt
        self._recorder.flush()
        if outcome.failure is None and outcome.result is not None:
            settled = self._store.succeed(job_id, attempt, outcome.result)
        elif outcome.exit_cause == "cancelled" and self._cancelled_at is None:
            failure = Failure(reason=Reason.WORKER_LOST, message=STOPPED_MESSAGE)
            settled = self._store.release(job_id, attempt, failure)
        else:
            failure = outcome.failure or Failure(reason=Reason.INTERNAL, message="The run ended without saying how.")
            settled = self._store.fail(job_id, attempt, failure, retry=outcome.retryable, result=outcome.result)
        if settled.state is JobState.CANCELLED and self._cancelled_at is not None:
            self._metrics.cancel_finished(self._clock.monotonic() - self._cancelled_at)
        if settled.state.is_terminal:
            self._metrics.job_completed(settled, device_type(self.device))
        return settled

    def _queue_wait_seconds(self) -> float:
        """How long the job stood in the queue for this run.

        Nothing can be added to a job that waits, so the last two events of one that was just claimed are the QUEUED
        and the RUNNING of this run.
        """
        events = self._store.events_after(self.job.job_id, self.job.last_sequence - 2, 2)
        queued, running = (_time_of(events, state) for state in (JobState.QUEUED, JobState.RUNNING))
        if queued is None or running is None:
            queued, running = self.job.create_time, self._clock.now()
        return max(0.0, running - queued)


def _time_of(events: Sequence[Event], state: JobState) -> float | None:
    times = [event.time for event in events if isinstance(event.payload, StateEvent) and event.payload.state is state]
    return times[-1] if times else None


def _sound(progress: Progress, floor: float) -> Progress:
    """The progress with a fraction in [floor, 1], without numbers that JSON cannot carry, and not above a few kilobytes."""
    fraction = progress.fraction if math.isfinite(progress.fraction) else floor
    remaining = progress.remaining_seconds
    return Progress(
        phase=progress.phase,
        fraction=min(1.0, max(floor, fraction)),
        epoch=max(0, progress.epoch),
        epochs=max(0, progress.epochs),
        remaining_seconds=remaining if remaining is not None and math.isfinite(remaining) and remaining >= 0 else None,
        metrics=dict(itertools.islice(_sound_metrics(progress.metrics), MAX_METRICS)),
    )


def _sound_metrics(metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if math.isfinite(value) and len(name) <= MAX_METRIC_CHARACTERS:
            yield name, value


def _printable(text: str) -> str:
    """The text without control characters, capped: it comes from a process that runs a caller's model."""
    shown = "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    return shown if len(shown) <= MAX_LOG_CHARACTERS else shown[:MAX_LOG_CHARACTERS] + " [...]"
