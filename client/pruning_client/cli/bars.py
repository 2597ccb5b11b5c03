"""Bars on a terminal: one per file, one for the job."""

from __future__ import annotations

from types import TracebackType
from typing import IO, Self

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from pruning_client.cli.progress import describe_event, describe_progress
from pruning_client.text import bytes_text, printable
from pruning_client.values import Event, JobState, Snapshot, StateChange
from pruning_client.values import Progress as JobProgress

# A terminal echoes Ctrl-C as `^C`; in the last column that would wrap, and the bars be drawn a second time below.
_FREE_COLUMNS = 3
# What a job is doing before its worker reports.
_BEFORE_PROGRESS = {
    JobState.QUEUED: "waiting for its turn",
    JobState.RUNNING: "starting",
    JobState.CANCELLING: "cancelling",
}


class Bars:
    """Bars that redraw themselves."""

    def __init__(self, stream: IO[str]) -> None:
        self._bars = _Rows(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Detail(),
            console=Console(file=stream, markup=False, highlight=False),
        )
        self._tasks: dict[str, TaskID] = {}
        self._texts: dict[str, str] = {}

    def transfer(self, name: str, done: int, total: int) -> None:
        """Moves the bar of a file."""
        self._update(name, name, done, total, f"{bytes_text(done)} of {bytes_text(total)}")

    def event(self, event: Event) -> None:
        """Moves the bar of the job, and prints what is worth a line."""
        body = event.body
        if isinstance(body, JobProgress):
            phase, _, detail = describe_progress(body).partition("  ")
            self._update("job", phase, body.fraction, 1.0, detail)
            return
        line = describe_event(event)
        if line is not None:
            self.note(line)
        if isinstance(body, Snapshot):
            self._state(body.job.state, body.job.progress)
        elif isinstance(body, StateChange):
            self._state(body.state, None)

    def _state(self, state: JobState, progress: JobProgress | None) -> None:
        if state is JobState.SUCCEEDED:
            self._update("job", "done", 1.0, 1.0, "")
        elif state in _BEFORE_PROGRESS and progress is None:
            self._update("job", _BEFORE_PROGRESS[state], 0.0, None, "")

    def _update(self, key: str, text: str, done: float, total: float | None, detail: str) -> None:
        shown, more = printable(text, 60), printable(detail, 200)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(shown, total=total, detail=more)
        is_news = self._texts.get(key) != shown
        self._texts[key] = shown
        self._bars.update(
            self._tasks[key], description=shown, completed=done, total=total, detail=more, refresh=is_news
        )

    def note(self, text: str) -> None:
        """Prints a line above the bars."""
        self._bars.console.print(Text(printable(text, 20_000)))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()


class _Rows(Progress):
    """Rows that stay clear of the terminal's last columns."""

    def get_renderable(self) -> RenderableType:
        return Constrain(super().get_renderable(), max(self.console.width - _FREE_COLUMNS, 1))


class _Detail(TextColumn):
    """The text behind a bar: what a narrow terminal cuts first."""

    def __init__(self) -> None:
        super().__init__("{task.fields[detail]}", markup=False, table_column=Column(overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text
