"""How far a run is: phases, progress, counters and notes, told to the server as they happen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from pruning_server.jobs.events import (
    CountersAdded,
    LogWritten,
    PhaseFinished,
    PhaseStarted,
    ProgressMade,
    Severity,
    WorkerMessage,
)
from pruning_server.jobs.model import Progress
from pruning_server.jobs.ports import Clock
from pruning_server.spec.phases import Phase

# Rough shares of a run's time; the bar moves forward only, so exactness is not needed.
SHARES = {
    Phase.LOAD: 0.02,
    Phase.OBSERVE: 0.03,
    Phase.BASELINE: 0.08,
    Phase.PLAN: 0.02,
    Phase.PRUNE: 0.01,
    Phase.RECOVER: 0.66,
    Phase.VERIFY: 0.03,
    Phase.EVALUATE: 0.12,
    Phase.EXPORT: 0.03,
}
# Where planning makes and judges many candidates.
LONG_PLANNING = 0.60
PROGRESS_INTERVAL_SECONDS = 0.4


class Sink(Protocol):
    """Where messages go."""

    def send(self, message: WorkerMessage) -> None:
        """Sends one."""
        ...


class Story:
    """Tells a run's progress; `timings` are seconds per finished phase, by the phase's name; `clock` is what it reads."""

    def __init__(self, sink: Sink, clock: Clock) -> None:
        self._sink = sink
        self.clock = clock
        self._started = 0.0
        self._last_sent = float("-inf")
        self._last_epoch = 0
        self._shares = SHARES
        self.phase: Phase | None = None
        self.timings: dict[str, float] = {}

    def expect_long_planning(self, share: float = LONG_PLANNING) -> None:
        """Gives PLAN this share of the bar, and RECOVER what is left of both; to be told before it goes on."""
        both = SHARES[Phase.PLAN] + SHARES[Phase.RECOVER]
        self._shares = SHARES | {Phase.PLAN: share, Phase.RECOVER: both - share}

    @contextmanager
    def telling(self, phase: Phase) -> Iterator[None]:
        """Runs one phase; where it raises, `phase` stays what it was, for the message of the failure."""
        self.phase = phase
        self._started = self.clock.monotonic()
        self._last_epoch = 0
        self._sink.send(PhaseStarted(phase=phase))
        self.progress(0.0, forced=True)
        yield
        seconds = self.elapsed_seconds()
        self.timings[phase.value] = seconds
        self._sink.send(PhaseFinished(phase=phase, seconds=seconds))

    def elapsed_seconds(self) -> float:
        """Since the phase began."""
        return self.clock.monotonic() - self._started

    def progress(
        self,
        fraction: float,
        *,
        epoch: int = 0,
        epochs: int = 0,
        metrics: dict[str, float] | None = None,
        forced: bool = False,
    ) -> None:
        """Tells that `fraction` of this phase, in [0, 1], is done; at most a few times per second."""
        phase = self.phase
        now = self.clock.monotonic()
        due = forced or epoch != self._last_epoch or now - self._last_sent >= PROGRESS_INTERVAL_SECONDS
        if phase is None or not due:
            return
        self._last_sent, self._last_epoch = now, epoch
        elapsed = now - self._started
        remaining = elapsed * (1 - fraction) / fraction if epoch and 0 < fraction <= 1 else None
        whole = sum(share for earlier, share in self._shares.items() if _before(earlier, phase))
        whole += self._shares[phase] * fraction
        progress = Progress(
            phase=phase,
            fraction=min(1.0, whole),
            epoch=epoch,
            epochs=epochs,
            remaining_seconds=remaining,
            # JSON has no word for what is not a number.
            metrics={name: value for name, value in (metrics or {}).items() if math.isfinite(value)},
        )
        self._sink.send(ProgressMade(progress=progress))

    def count(
        self,
        *,
        parameters_processed: int = 0,
        parameters_removed: int = 0,
        samples_trained: int = 0,
        samples_evaluated: int = 0,
    ) -> None:
        """Tells of work done."""
        self._sink.send(
            CountersAdded(
                parameters_processed=parameters_processed,
                parameters_removed=parameters_removed,
                samples_trained=samples_trained,
                samples_evaluated=samples_evaluated,
            )
        )

    def note(self, text: str, severity: Severity = Severity.INFO) -> None:
        """Writes a line for the people who watch."""
        self._sink.send(LogWritten(severity=severity, text=text))


def _before(earlier: Phase, phase: Phase) -> bool:
    order = list(Phase)
    return order.index(earlier) < order.index(phase)
