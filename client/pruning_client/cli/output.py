"""What a command says: results on stdout, everything else on stderr, and with `--json` one object on stdout only."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Sequence
from typing import IO, TYPE_CHECKING, Any

from pruning_client.errors import PruningClientError
from pruning_client.text import printable

if TYPE_CHECKING:
    from rich.table import Table

# Pipes have no width; a table in one should not be cut.
_PIPE_WIDTH = 200
_UNLIMITED = 10_000
_MAX_LINES = 10


class Output:
    """The two streams of one command. Every text that goes to a person is made printable here."""

    def __init__(self, *, is_json: bool, stdout: IO[str] | None = None, stderr: IO[str] | None = None) -> None:
        self.is_json = is_json
        self._stdout = sys.stdout if stdout is None else stdout
        self.stderr = sys.stderr if stderr is None else stderr
        self._answered = False

    def note(self, text: str) -> None:
        """Says something about what is going on, on stderr."""
        self.stderr.write(f"{printable(text, 20_000)}\n")
        self.stderr.flush()

    def usage(self, text: str) -> None:
        """Repeats a command's short help, on stderr."""
        self.stderr.write(text)

    def line(self, text: str) -> None:
        """Says a part of the result; not with `--json`."""
        if not self.is_json:
            self._stdout.write(f"{printable(text, 20_000)}\n")

    def answer(self, body: dict[str, Any]) -> None:
        """Prints the one object of `--json`; nothing without it, and nothing a second time."""
        if self.is_json and not self._answered:
            self._answered = True
            self._stdout.write(f"{json.dumps(body)}\n")
            self._stdout.flush()

    def answer_job(
        self,
        *,
        job: str | None = None,
        state: str | None = None,
        reason: str | None = None,
        message: str | None = None,
        report: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Prints `{job, state, reason, message, report}`, and `more` behind them."""
        self.answer({"job": job, "state": state, "reason": reason, "message": message, "report": report, **more})

    def error(self, error: PruningClientError, *, job: str | None = None, state: str | None = None) -> None:
        """Says what went wrong and what to change."""
        first, *others = error.message.split("\n")
        self.note(f"error: {first}")
        # What a condition's caret points at; indented, so that no line of a server's looks like one of ours.
        for line in others[:_MAX_LINES]:
            self.note(f"  {line.removeprefix('  ')}")
        for violation in error.violations:
            if violation.description not in error.message:
                self.note(f"  {violation.field}: {violation.description}")
        if error.retry_after_seconds is not None:
            self.note(f"  try again in {error.retry_after_seconds:g} s")
        self.answer_job(job=job, state=state, reason=error.reason, message=error.message)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]], *, optional: Sequence[str] = ()) -> None:
        """Prints a table; not with `--json`. Without any header it has no header row.

        Columns named in `optional` are left out, in that order, until the table fits the terminal.
        """
        if self.is_json:
            return
        # rich is imported where it is used: it costs startup time.
        from rich.console import Console  # noqa: PLC0415

        is_terminal = self._stdout.isatty()
        console = Console(file=self._stdout, markup=False, highlight=False, width=None if is_terminal else _PIPE_WIDTH)
        left_out: set[str] = set()
        table = _table(headers, rows, left_out)
        for name in optional:
            if console.measure(table, options=console.options.update(width=_UNLIMITED)).maximum <= console.width:
                break
            left_out.add(name)
            table = _table(headers, rows, left_out)
        console.print(table)


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]], left_out: Container[str]) -> Table:
    from rich.box import SIMPLE  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=SIMPLE, show_header=any(headers))
    shown = [index for index, header in enumerate(headers) if header not in left_out]
    for index in shown:
        table.add_column(Text(headers[index]), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(row[index])) for index in shown))
    return table
