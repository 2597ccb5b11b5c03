"""Shows a transfer and a run while they go on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Protocol, Self

from pruning_client.text import bytes_text, duration_text, printable
from pruning_client.values import Event, LogLine, Progress, Severity, Snapshot, StateChange

# Lines in a log file should not outnumber what they say.
_SECONDS_BETWEEN_LINES = 2.0
_METRICS_SHOWN = 4


class ProgressView(Protocol):
    """Something that shows what is going on; a context manager."""

    def transfer(self, name: str, done: int, total: int) -> None:
        """Bytes of a file went over the wire; any thread may call."""

    def event(self, event: Event) -> None:
        """The job did something."""

    def note(self, text: str) -> None:
        """A line that stays."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_progress(stream: IO[str]) -> ProgressView:
    """Returns a view for `stream`: a bar if it is a terminal."""
    if not stream.isatty():
        return _Lines(stream)
    from pruning_client.cli.bars import Bars  # noqa: PLC0415 - rich costs startup time

    return Bars(stream)


def describe_event(event: Event) -> str | None:
    """Returns one line about an event that is worth a line of its own; None for the others."""
    body = event.body
    if isinstance(body, Snapshot):
        return f"job {body.job.job_id} is {body.job.state}"
    if isinstance(body, StateChange):
        if body.failure is not None:
            return f"{body.state}: {body.failure.reason}: {body.failure.message}"
        return f"{body.state}, attempt {body.attempt}" if body.attempt > 1 else f"{body.state}"
    if isinstance(body, LogLine):
        return f"warning: {body.message}" if body.severity is Severity.WARNING else body.message
    return None


def describe_progress(progress: Progress) -> str:
    """Returns phase, epoch, remaining time and the latest metrics on one line."""
    parts = [str(progress.phase or "?")]
    if progress.epochs:
        parts.append(f"epoch {progress.epoch}/{progress.epochs}")
    parts.append(f"{min(max(progress.fraction, 0.0), 1.0):.0%}")
    if progress.remaining_seconds is not None:
        parts.append(f"about {duration_text(max(progress.remaining_seconds, 0.0))} left")
    return "  ".join([*parts, *_metrics(progress.metrics)])


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    return [f"{printable(name, 40)}={value:.4g}" for name, value in sorted(metrics.items())[:_METRICS_SHOWN]]


class _Lines:
    """One line per thing that happened, none too often."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._transfers: set[str] = set()
        self._shown: tuple[object, int] = (None, 0)
        self._shown_at = float("-inf")

    def transfer(self, name: str, done: int, total: int) -> None:
        is_new = name not in self._transfers
        self._transfers.add(name)
        if done >= total:
            is_known = is_new and name.startswith("upload")  # nothing was sent
            self.note(f"{name}: {'the server has it already' if is_known else 'done'} ({bytes_text(total)})")
        elif is_new:
            start = f", from {bytes_text(done)} on" if done else ""
            self.note(f"{name}: {bytes_text(total)}{start}")

    def event(self, event: Event) -> None:
        if isinstance(event.body, Progress):
            self._progress(event.body)
            return
        line = describe_event(event)
        if line is not None:
            self.note(line)

    def _progress(self, progress: Progress) -> None:
        now = time.monotonic()
        is_new_phase = progress.phase is not self._shown[0]
        is_new_epoch = (progress.phase, progress.epoch) != self._shown
        if is_new_phase or (is_new_epoch and now - self._shown_at >= _SECONDS_BETWEEN_LINES):
            self._shown, self._shown_at = (progress.phase, progress.epoch), now
            self.note(describe_progress(progress))

    def note(self, text: str) -> None:
        self._stream.write(f"{printable(text, 20_000)}\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.flush()
