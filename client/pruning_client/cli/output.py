"""What a command says: results on stdout, everything else on stderr, and with `--json` one object on stdout only."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import IO, Any

from pruning_client.errors import PruningClientError
from pruning_client.text import printable

# Pipes have no width; a table in one should not be cut.
_PIPE_WIDTH = 200


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
        self.note(f"error: {error.message}")
        for violation in error.violations:
            if violation.description not in error.message:
                self.note(f"  {violation.field}: {violation.description}")
        if error.retry_after_seconds is not None:
            self.note(f"  try again in {error.retry_after_seconds:g} s")
        self.answer_job(job=job, state=state, reason=error.reason, message=error.message)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
        """Prints a table; not with `--json`. Without any header it has no header row."""
        if self.is_json:
            return
        # rich is imported where it is used: it costs startup time.
        from rich.box import SIMPLE  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        is_terminal = self._stdout.isatty()
        console = Console(file=self._stdout, markup=False, highlight=False, width=None if is_terminal else _PIPE_WIDTH)
        table = Table(box=SIMPLE, show_header=any(headers), title=Text(printable(title)) if title else None)
        for header in headers:
            table.add_column(Text(header), overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)
