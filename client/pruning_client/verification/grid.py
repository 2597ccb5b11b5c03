"""The grid of jobs: one for each ratio and dropout rate, the same again whenever the same is asked."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pruning_client.client import PruningClient
from pruning_client.errors import NotFoundError
from pruning_client.reading import number, section
from pruning_client.spec import Robustness, Submission, Target
from pruning_client.values import Job, JobState
from pruning_client.wire.spec import spec_to_wire, target_name

LABEL = "verification"
# Of jobs that ended without a result, each call tries one more.
MAX_ATTEMPTS = 100
_SPACE = uuid.UUID("6f1d1a52-6c1f-5f0e-9f53-0b6b0a3d7a19")


@dataclass(frozen=True)
class Cell:
    """One job of the grid: the target's value, and the rate of every dropout while it is fine-tuned."""

    ratio: float
    dropout: float


@dataclass(frozen=True)
class Ran:
    """How the job of a cell ended; `report`: None where it left none."""

    cell: Cell
    job: Job
    report: dict[str, Any] | None


Tell = Callable[[str], None]
"""Hears what is going on, one line at a time."""


def run_grid(
    client: PruningClient,
    submission: Submission,
    targets: Iterable[Target],
    rates: tuple[float, ...],
    *,
    at_once: int,
    tell: Tell,
) -> tuple[Ran, ...]:
    """Runs every cell on the server, a few at a time, and returns them by ratio and rate.

    What ran before is not run again: a request has the same id whenever model, data and everything else in it are the
    same. A job that failed or was cancelled is tried once more per call. Where the first cell's report says that the
    model has no dropout, the other rates are left out: they would be the same job.

    Args:
        client: of the server.
        submission: everything that the jobs have in common; files named by path are uploaded once.
        targets: how far to prune, at least one.
        rates: of dropout, at least one, each in [0, 1).
        at_once: jobs that wait or run on the server at a time, at least 1.
        tell: hears about each.

    Raises:
        PruningClientError: the server cannot be asked, or refuses a request.
    """
    stored = client.store(replace(submission, robustness=Robustness.ALL), on_note=tell)
    asked = [
        (Cell(target.value, rate), replace(stored, target=target, dropout=rate)) for target in targets for rate in rates
    ]
    label = str(_id_of(replace(stored, target=None)))
    cells = _Cells(client, label, len(asked), tell)
    first = cells.collect(*cells.submit(*asked[0]))
    rest = asked[1:] if has_dropout(first.report) else [one for one in asked[1:] if one[0].dropout == rates[0]]
    cells.total = 1 + len(rest)
    return (first, *cells.run(rest, at_once))


def has_dropout(report: dict[str, Any] | None) -> bool:
    """Whether the job of a report found a dropout whose rate it could set; True where that is not known."""
    layers = number(section(report, "strategy", "recovery", "dropout"), "layers")
    return layers is None or layers > 0


class _Cells:
    """Submits cells and collects what came of them, counting as they go."""

    def __init__(self, client: PruningClient, label: str, total: int, tell: Tell) -> None:
        self.total = total
        self._client = client
        self._label = label
        self._tell = tell
        self._done = 0

    def run(self, asked: Iterable[tuple[Cell, Submission]], at_once: int) -> Iterator[Ran]:
        """Keeps `at_once` jobs on the server; waits for the oldest first."""
        waiting: list[tuple[Cell, Job]] = []
        for cell, submission in asked:
            waiting.append(self.submit(cell, submission))
            if len(waiting) >= at_once:
                yield self.collect(*waiting.pop(0))
        for cell, job in waiting:
            yield self.collect(cell, job)

    def submit(self, cell: Cell, submission: Submission) -> tuple[Cell, Job]:
        """The cell's job: the one that is there already, unless that one came to nothing."""
        for attempt in range(MAX_ATTEMPTS):
            job = self._client.submit(submission, str(_id_of(submission, attempt)), labels={LABEL: self._label})
            if job.state not in (JobState.FAILED, JobState.CANCELLED):
                break
        self._tell(f"{_named(cell, submission)}: job {job.job_id} is {job.state}")
        return cell, job

    def collect(self, cell: Cell, job: Job) -> Ran:
        """Waits for the job and fetches its report."""
        ended = job if job.state.is_terminal else self._client.wait(job.job_id)
        self._done += 1
        self._tell(f"{self._done} of {self.total}: job {job.job_id} {ended.state}")
        try:
            # A job that missed its verdict has a report too.
            return Ran(cell, ended, self._client.report(ended))
        except NotFoundError:
            return Ran(cell, ended, None)


def _id_of(submission: Submission, attempt: int = 0) -> uuid.UUID:
    content = spec_to_wire(submission).SerializeToString(deterministic=True)
    return uuid.uuid5(_SPACE, f"{content.hex()} {attempt}")


def _named(cell: Cell, submission: Submission) -> str:
    target = submission.target
    name = "ratio" if target is None else target_name(target).replace("_", " ")
    return f"{name} {cell.ratio:g}, dropout {cell.dropout:g}"
