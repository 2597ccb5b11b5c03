"""Bars on a terminal: one per file, one for the job."""

from __future__ import annotations

from types import TracebackType
from typing import IO, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from pruning_client.cli.progress import describe_event, describe_progress
from pruning_client.text import bytes_text, printable
from pruning_client.values import Event, JobState, Snapshot, StateChange
from pruning_client.values import Progress as JobProgress

# A terminal echoes Ctrl-C as `^C`; in the last column that would wrap, and the bars be drawn a second time below.
_FREE_COLUMNS = 2
_WIDE = 100
# What a job is doing while its worker reports nothing.
_WITHOUT_PROGRESS = {
    JobState.QUEUED: "waiting",
    JobState.RUNNING: "starting",
    JobState.CANCELLING: "cancelling",
}


class Bars:
    """Bars that redraw themselves."""

    def __init__(self, stream: IO[str]) -> None:
        console = Console(file=stream, markup=False, highlight=False)
        self._name_width = 3 * console.width // 10
        bar = BarColumn(bar_width=24 if console.width >= _WIDE else 12)
        self._bars = _Rows(TextColumn("{task.description}", markup=False), bar, _Detail(), console=console)
        self._tasks: dict[str, TaskID] = {}
        self._texts: dict[str, str] = {}

    def transfer(self, name: str, done: int, total: int) -> None:
        """Moves the bar of a file."""
        self._update(name, name, done, total, f"{bytes_text(done)} of {bytes_text(total)}")

    def event(self, event: Event) -> None:
        """Moves the bar of the job, and prints what is worth a line."""
        body = event.body
        if isinstance(body, JobProgress):
            self._progress(body)
            return
        line = describe_event(event)
        if line is not None:
            self.note(line)
        if isinstance(body, Snapshot):
            self._state(body.job.state)
            if body.job.progress is not None and body.job.state is JobState.RUNNING:
                self._progress(body.job.progress)
        elif isinstance(body, StateChange):
            self._state(body.state)

    def _state(self, state: JobState) -> None:
        if state is JobState.SUCCEEDED:
            self._update("job", "done", 1.0, 1.0, "")
        elif state in _WITHOUT_PROGRESS:
            self._update("job", _WITHOUT_PROGRESS[state], 0.0, None, "")
        elif "job" in self._tasks:  # it failed or was cancelled, as the line above says
            self._bars.remove_task(self._tasks.pop("job"))

    def _progress(self, progress: JobProgress) -> None:
        phase, _, detail = describe_progress(progress).partition("  ")
        self._update("job", phase, progress.fraction, 1.0, detail)

    def _update(self, key: str, text: str, done: float, total: float | None, detail: str) -> None:
        shown, more = printable(text, self._name_width), printable(detail, 200)
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
        return _Clear(super().get_renderable())


class _Clear:
    """Something drawn clear of the terminal's last columns."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Constrain(self._content, max(options.max_width - _FREE_COLUMNS, 1))


class _Detail(TextColumn):
    """The text behind a bar: what a narrow terminal cuts first."""

    def __init__(self) -> None:
        super().__init__("{task.fields[detail]}", markup=False, table_column=Column(overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text
