"""Listens to one worker until it is gone, and ends it when it is cancelled, late or silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pruning_server.adapters.exits import ExitCause, FinalMessage, Overdue, WorkerEnd, classify
from pruning_server.adapters.messages import MessageDecoder
from pruning_server.adapters.process import Child
from pruning_server.adapters.usage import Allowance, Excess, Resource, Watchdog
from pruning_server.jobs.events import CheckPassed, PhaseFinished, PhaseStarted, RunFailed, RunSucceeded, WorkerMessage
from pruning_server.jobs.ports import CancelToken, Clock
from pruning_server.spec.phases import Phase

READ_SECONDS = 0.1
# A worker that has said its last word is given this long to leave.
FAREWELL_SECONDS = 10.0
DRAIN_SECONDS = 1.0


@dataclass(frozen=True)
class WorkerLimits:
    """How long a worker may take, in seconds.

    Attributes:
        deadline: the clock's monotonic time at which the job must be over.
        overall: what to say when it is not.
        start_seconds: from its start to its first phase.
        silence_seconds: between two messages; a worker that lives sends one every few seconds.
        phases: limits of single phases, with what to say.
        allowance: what else it may take, of memory, threads and disk.
    """

    deadline: float
    overall: Overdue
    start_seconds: float = 120.0
    silence_seconds: float = 60.0
    phases: Mapping[Phase, Overdue] = field(default_factory=dict)
    allowance: Allowance = field(default_factory=Allowance)


class Supervisor:
    """Supervises one worker; `watch` blocks until it is gone.

    Args:
        on_message: gets every message but the final one, which is the caller's to judge.
        phase: the phase that the worker is part of, if it starts none itself.
    """

    def __init__(
        self,
        child: Child,
        *,
        limits: WorkerLimits,
        on_message: Callable[[WorkerMessage], None],
        cancelled: CancelToken,
        clock: Clock,
        phase: Phase | None = None,
    ) -> None:
        self._child = child
        self._limits = limits
        self._on_message = on_message
        self._cancelled = cancelled
        self._clock = clock
        self._decoder = MessageDecoder()
        self._final: FinalMessage | None = None
        self._final_at = 0.0
        self._phase = phase
        self._in_phase = False
        self._watchdog = Watchdog(child.pid, limits.allowance)
        self._excess: Excess | None = None
        self._phase_since = self._heard_at = clock.monotonic()

    def watch(self) -> WorkerEnd:
        """Passes messages on until the worker is gone, killed if need be; returns how it ended."""
        verdict: tuple[ExitCause, Overdue | None] | None = None
        while verdict is None and not self._child.has_exited():
            self._take(self._child.read(READ_SECONDS))
            verdict = self._verdict()
        if verdict is not None:
            self._child.kill()
        self._take(self._child.drain(DRAIN_SECONDS))
        status = self._child.finish()
        stderr_text = self._child.stderr.text()
        if verdict is None or self._final is not None:
            verdict = classify(status, self._final, stderr_text), None
        cause, overdue = verdict
        return WorkerEnd(
            cause=cause,
            status=status,
            final=self._final,
            phase=self._phase,
            overdue=overdue,
            stderr_text=stderr_text,
            stderr_last_line=self._child.stderr.last_line(),
            excess=self._excess if self._final is None else None,
        )

    def _take(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._heard_at = self._clock.monotonic()
            if self._final is not None:
                return  # nothing counts after the last word
            match message:
                case RunSucceeded() | CheckPassed() | RunFailed():
                    self._final, self._final_at = message, self._heard_at
                    continue
                case PhaseStarted(phase=phase):
                    self._phase, self._in_phase, self._phase_since = phase, True, self._heard_at
                case PhaseFinished():
                    self._in_phase = False
                case _:
                    pass
            self._on_message(message)

    def _verdict(self) -> tuple[ExitCause, Overdue | None] | None:
        """Why the worker must go now, or None."""
        now = self._clock.monotonic()
        limits = self._limits
        if self._final is not None:
            late = self._cancelled.is_set() or now - self._final_at > FAREWELL_SECONDS
            return (ExitCause.OK, None) if late else None
        if self._cancelled.is_set():
            return ExitCause.CANCELLED, None
        if now > limits.deadline:
            return ExitCause.DEADLINE, limits.overall
        self._excess = self._watchdog.excess()
        if self._excess is not None:
            return (ExitCause.OOM if self._excess.resource is Resource.MEMORY else ExitCause.EXCEPTION), None
        if self._phase is None and now - self._phase_since > limits.start_seconds:
            return ExitCause.DEADLINE, Overdue("Starting the worker", limits.start_seconds, BUSY_REMEDY)
        phase_limit = limits.phases.get(self._phase) if self._phase is not None and self._in_phase else None
        if phase_limit is not None and now - self._phase_since > phase_limit.limit_seconds:
            return ExitCause.DEADLINE, phase_limit
        if now - self._heard_at > limits.silence_seconds:
            return ExitCause.LOST, Overdue("A message", limits.silence_seconds, BUSY_REMEDY)
        return None


BUSY_REMEDY = "The server's machine may be overloaded: try again, or start the server with fewer slots."
