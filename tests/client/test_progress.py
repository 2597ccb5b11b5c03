"""What a person sees while a job runs: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest

from helpers.streams import Terminal
from pruning_client import Event, Failure, JobState, LogLine, Phase, Progress, Severity, StateChange
from pruning_client.cli.bars import Bars
from pruning_client.cli.progress import describe_progress, open_progress

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e[bold red]x[/] :smile:"


def event(body: object, sequence: int = 1) -> Event:
    """An event around the body."""
    return Event(sequence=sequence, time=None, body=body)  # type: ignore[arg-type]


def a_whole_run() -> list[Event]:
    """Events of every kind."""
    recover = Progress(Phase.RECOVER, 0.5, 3, 10, 75.0, {HOSTILE: 0.25, "b": 1.0, "c": 2.0, "d": 3.0, "e": 4.0})
    return [
        event(StateChange(JobState.RUNNING, 2, None)),
        event(Progress(Phase.LOAD, 0.1)),
        event(LogLine(Severity.WARNING, HOSTILE)),
        event(recover),
        event(Progress(None, 7.0)),
        event(StateChange(JobState.QUEUED, 1, Failure("WORKER_LOST", "it died; it is tried again"))),
        event(StateChange(JobState.SUCCEEDED, 1, None)),
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_everything_is_shown_and_nothing_steers_the_terminal(stream: type[io.StringIO]) -> None:
    out = stream()
    with open_progress(out) as view:
        for done in (0, 1 << 20, 2 << 20):
            view.transfer(f"upload {HOSTILE}", done, 2 << 20)
        for one in a_whole_run():
            view.event(one)
        view.note(HOSTILE)
    text = out.getvalue()
    for word in (
        "2.0 MiB",
        "RUNNING",
        "attempt 2",
        "warning:",
        "RECOVER",
        "epoch 3/10",
        "1 min 15 s left",
        "WORKER_LOST",
        "[bold red]x[/] :smile:",
    ):
        assert word in text, word
    for bad in ("\x1b]", "\x07", "\x1b[2J", "\u202e"):
        assert bad not in text
    assert ("\x1b" in text) is (stream is Terminal)


def test_lines_do_not_flood_a_log() -> None:
    out = io.StringIO()
    with open_progress(out) as view:
        for epoch in range(1, 1001):
            view.event(event(Progress(Phase.RECOVER, epoch / 1000, epoch, 1000)))
            view.transfer("upload m.pt", epoch, 1000)
    assert out.getvalue().count("\n") < 20


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(Phase.LOAD, 0.0), "LOAD  0%"),
        (Progress(Phase.RECOVER, 0.5, 1, 4, 2.0, {"fit_loss": 0.123456}), "RECOVER  epoch 1/4  50%  about 2 s left  fit_loss=0.1235"),
        (Progress(None, -3.0, remaining_seconds=-1.0), "?  0%  about 0 ms left"),
        (Progress(Phase.EXPORT, 2.0, metrics={"x": float("nan")}), "EXPORT  100%  x=nan"),
    ],
)  # fmt: skip
def test_progress_on_one_line(progress: Progress, text: str) -> None:
    assert describe_progress(progress) == text


def test_a_file_that_needs_no_upload_is_said_to_be_there() -> None:
    out = io.StringIO()
    with open_progress(out) as view:
        view.transfer("upload m.pt", 5, 5)
        view.transfer("download o.pt", 5, 5)
    assert out.getvalue() == "upload m.pt: the server has it already (5 B)\ndownload o.pt: done (5 B)\n"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


def test_a_narrow_terminal_shows_the_phase_and_cuts_the_details(narrow: Terminal) -> None:
    metrics = {"select_metric": 0.9, "select_loss": 0.1, "train_loss": 0.2}
    with Bars(narrow) as view:
        view.event(event(Progress(Phase.RECOVER, 0.5, 3, 10, 75.0, metrics)))
    rows = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", narrow.getvalue()).splitlines() if "epoch" in line]
    assert rows
    for row in rows:
        assert "RECOVER" in row
        assert "epoch 3/10" in row
        assert "\u2501" in row, "the bar is gone"
        # The terminal echoes Ctrl-C as two characters; they must not wrap.
        assert len(row.rpartition("\r")[2]) <= 58


def test_there_is_a_bar_before_the_worker_reports(narrow: Terminal) -> None:
    with Bars(narrow) as view:
        for state, words in ((JobState.QUEUED, "waiting"), (JobState.RUNNING, "starting")):
            view.event(event(StateChange(state, 1, None)))
            assert words in narrow.getvalue()


def test_no_bar_stays_of_a_job_that_was_cancelled(narrow: Terminal) -> None:
    with Bars(narrow) as view:
        for state in (JobState.CANCELLING, JobState.CANCELLED):
            view.event(event(StateChange(state, 1, None)))
        before = len(narrow.getvalue())
    assert "cancelling" not in narrow.getvalue()[before:]


def test_metrics_stand_in_one_order() -> None:
    forwards = Progress(Phase.RECOVER, 0.5, metrics={"a": 1.0, "b": 2.0})
    backwards = Progress(Phase.RECOVER, 0.5, metrics={"b": 2.0, "a": 1.0})
    assert describe_progress(forwards) == describe_progress(backwards)
