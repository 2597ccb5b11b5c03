"""Shows a transfer and a run while they go on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol, Self

from pruning_client.text import bytes_text, duration_text, printable
from pruning_client.values import Event, JobState, LogLine, Progress, Severity, Snapshot, StateChange

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

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
    return _Bars(stream) if stream.isatty() else _Lines(stream)


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
    return [f"{printable(name, 40)}={value:.4g}" for name, value in list(metrics.items())[:_METRICS_SHOWN]]


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


class _Bars:
    """Bars that redraw themselves: one per file, one for the job."""

    def __init__(self, stream: IO[str]) -> None:
        # rich is imported where it is used: it costs startup time.
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import BarColumn, TextColumn  # noqa: PLC0415
        from rich.progress import Progress as Bars  # noqa: PLC0415

        console = Console(file=stream, markup=False, highlight=False)
        text = TextColumn("{task.description}", markup=False)
        self._bars: RichProgress = Bars(
            text, BarColumn(bar_width=24), TextColumn("{task.fields[detail]}", markup=False), console=console
        )
        self._tasks: dict[str, TaskID] = {}
        self._texts: dict[str, str] = {}

    def transfer(self, name: str, done: int, total: int) -> None:
        self._update(name, name, done, total, f"{bytes_text(done)} of {bytes_text(total)}")

    def event(self, event: Event) -> None:
        if isinstance(event.body, Progress):
            phase, _, detail = describe_progress(event.body).partition("  ")
            self._update("job", phase, event.body.fraction, 1.0, detail)
            return
        if isinstance(event.body, StateChange) and event.body.state is JobState.SUCCEEDED:
            self._update("job", "done", 1.0, 1.0, "")
        line = describe_event(event)
        if line is not None:
            self.note(line)

    def _update(self, key: str, text: str, done: float, total: float, detail: str) -> None:
        shown, more = printable(text, 60), printable(detail, 200)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(shown, total=total, detail=more)
        is_news = self._texts.get(key) != shown
        self._texts[key] = shown
        self._bars.update(
            self._tasks[key], description=shown, completed=done, total=total, detail=more, refresh=is_news
        )

    def note(self, text: str) -> None:
        from rich.text import Text  # noqa: PLC0415

        self._bars.console.print(Text(printable(text, 20_000)))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()
