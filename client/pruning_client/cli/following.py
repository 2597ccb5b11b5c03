"""Waits for a job, fetches what it produced, and says how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning_client.cli.exit_codes import ExitCode, exit_code_of_error, exit_code_of_state
from pruning_client.cli.output import Output
from pruning_client.cli.paths import check_outputs, write_text_atomically
from pruning_client.cli.progress import ProgressView, open_progress
from pruning_client.cli.summary import print_summary
from pruning_client.client import PruningClient
from pruning_client.errors import BadInputError, PruningClientError
from pruning_client.spec import Verdict
from pruning_client.values import Event, Job, JobState, Snapshot, StateChange


@dataclass(frozen=True)
class WantedFiles:
    """Where the caller wants the model, the report and the page; None: not."""

    model: Path | None = None
    report: Path | None = None
    html: Path | None = None

    def check(self, inputs: tuple[Path, ...] = ()) -> None:
        """Checks that all of them can be written, and the page rendered.

        Raises:
            BadInputError: one cannot, or the extra [report] is missing.
        """
        named = [("-o", self.model), ("--report", self.report), ("--html", self.html)]
        check_outputs([(flag, path) for flag, path in named if path is not None], inputs)
        if self.html is not None:
            require_report_extra()


def require_report_extra() -> None:
    """Checks that pages can be rendered.

    Raises:
        BadInputError: jinja2 or matplotlib is missing.
    """
    try:
        import jinja2  # noqa: F401, PLC0415 - an extra
        import matplotlib as mpl  # noqa: F401, PLC0415 - likewise
    except ImportError as error:
        raise BadInputError(
            f"an HTML page needs {error.name}: pip install 'pruning-service[report]'", reason="EXTRA_MISSING"
        ) from None


class _LastState:
    """Shows events and remembers the state, for the case that waiting ends before the job does."""

    def __init__(self, view: ProgressView, state: JobState) -> None:
        self.state = state
        self._view = view
        self._first_sequence: int | None = None

    def __call__(self, event: Event) -> None:
        body = event.body
        if isinstance(body, Snapshot):
            is_news = self._first_sequence is None or body.job.state is not self.state
            self._first_sequence = event.sequence if self._first_sequence is None else self._first_sequence
            self.state = body.job.state
            if not is_news:
                return
        elif isinstance(body, StateChange):
            is_history = event.sequence <= (self._first_sequence or 0)
            if is_history and body.failure is None:
                return  # the snapshot has told where it led to
            self.state = self.state if is_history else body.state
        self._view.event(event)


def wait_for(client: PruningClient, job: Job, output: Output) -> Job | ExitCode:
    """Returns the job once it has ended; an exit code if waiting ended before, which is then explained."""
    view = open_progress(output.stderr)
    last = _LastState(view, job.state)
    hint = f"the job goes on; wait for it with: prune watch {job.job_id}"
    try:
        with view:
            return client.wait(job.job_id, on_event=last)
    except KeyboardInterrupt:
        output.note(f"stopped waiting for job {job.job_id}; {hint}, stop it with: prune cancel {job.job_id}")
        output.answer_job(job=job.job_id, state=last.state, reason="INTERRUPTED", message=hint)
        return ExitCode.INTERRUPTED
    except PruningClientError as error:
        output.error(error, job=job.job_id, state=last.state)
        output.note(hint)
        return exit_code_of_error(error)


def conclude(client: PruningClient, job: Job, wanted: WantedFiles, output: Output) -> ExitCode:
    """Fetches the wanted files of a job that has ended, prints the outcome and returns the exit code."""
    hint = f"the files are on the server; fetch them with: prune fetch {job.job_id} -o OUT.pt"
    try:
        report, files = _fetch(client, job, wanted, output)
    except PruningClientError as error:
        output.error(error, job=job.job_id, state=job.state)
        output.note(hint)
        return exit_code_of_error(error)
    except KeyboardInterrupt:
        output.note(f"interrupted; {hint}")
        output.answer_job(job=job.job_id, state=job.state, reason="INTERRUPTED", message=hint)
        return ExitCode.INTERRUPTED
    code, reason, message = _explain(job)
    if report is not None:
        print_summary(output, report)
    for what, path in files:
        output.line(f"{what:<8} {path}")
    output.line(f"Job      {job.job_id} {job.state}: {message}")
    if job.result is not None and job.result.model_artifact_id and wanted.model is None:
        output.note(f"fetch the pruned model with: prune fetch {job.job_id} -o OUT.pt")
    output.answer_job(job=job.job_id, state=job.state, reason=reason, message=message, report=report)
    return code


def _explain(job: Job) -> tuple[ExitCode, str | None, str]:
    code = exit_code_of_state(job.state)
    if job.failure is not None:
        where = f" (in {job.failure.phase})" if job.failure.phase else ""
        return code, job.failure.reason, f"{job.failure.message}{where}"
    if _misses_verdict(job):
        return ExitCode.FAILED, "VERDICT_NOT_REACHED", f"the verdict is not {job.spec.required_verdict}"
    if job.state is JobState.CANCELLED:
        return code, "CANCELLED", "the job was cancelled"
    if job.result is not None:
        return code, None, f"verdict {job.result.verdict or 'unknown'}, sparsity {job.result.sparsity:.2%}"
    return code, None, f"the job is {job.state}"


def _misses_verdict(job: Job) -> bool:
    """Whether the job counts as succeeded although the verdict that its request requires was not reached."""
    required = job.spec.required_verdict
    is_reached = job.result is not None and job.result.verdict is required
    return job.state is JobState.SUCCEEDED and isinstance(required, Verdict) and not is_reached


def _fetch(
    client: PruningClient, job: Job, wanted: WantedFiles, output: Output
) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    files: list[tuple[str, str]] = []
    result = job.result
    if result is None:
        return None, files
    if wanted.model is not None and result.model_artifact_id:
        name = f"download {wanted.model.name}"
        with open_progress(output.stderr) as view:
            client.download_artifact(
                result.model_artifact_id, wanted.model, lambda done, total: view.transfer(name, done, total)
            )
        files.append(("Model", str(wanted.model)))
    if not result.report_artifact_id:
        return None, files
    report = client.report(job)
    if wanted.report is not None:
        client.download_artifact(result.report_artifact_id, wanted.report)
        files.append(("Report", str(wanted.report)))
    if wanted.html is not None:
        from pruning_client.html.page import render_page  # noqa: PLC0415 - needs an extra

        write_text_atomically(wanted.html, render_page(report))
        files.append(("Page", str(wanted.html)))
    return report, files
