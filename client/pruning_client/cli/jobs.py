"""`prune jobs`, `show`, `watch`, `cancel`, `delete` and `fetch`."""

from __future__ import annotations

from argparse import Namespace
from datetime import datetime
from typing import Any

from pruning_client.cli.arguments import UsageError
from pruning_client.cli.connecting import connect
from pruning_client.cli.exit_codes import ExitCode
from pruning_client.cli.following import WantedFiles, conclude, wait_for
from pruning_client.cli.output import Output
from pruning_client.errors import FailedPreconditionError
from pruning_client.spec import Conditional, Dynamic, StoredArtifact, Strategy, Submission
from pruning_client.values import Job, JobState
from pruning_client.wire.spec import strategy_name, target_name


def run_jobs(options: Namespace, output: Output) -> ExitCode:
    """Lists all jobs, newest first."""
    with connect(options) as client:
        rows = [job_row(job) for job in client.list()]
    output.answer({"jobs": rows})
    if not rows:
        output.line("no jobs")
        return ExitCode.OK
    headers = ["JOB", "STATE", "PHASE", "DONE", "STRATEGY", "TARGET", "VERDICT", "SPARSITY", "CREATED"]
    # Least wanted first: on a narrow terminal the id, which other commands take, must stay in one piece.
    optional = ["STRATEGY", "SPARSITY", "CREATED", "TARGET", "PHASE", "DONE", "VERDICT"]
    output.table(headers, [_cells(row) for row in rows], optional=optional)
    return ExitCode.OK


def run_show(options: Namespace, output: Output) -> ExitCode:
    """Shows one job."""
    with connect(options) as client:
        job = client.get(options.job)
        report = client.report(job) if output.is_json and job.result and job.result.report_artifact_id else None
    row = job_row(job)
    extra = {key: value for key, value in row.items() if key not in ("job", "state", "reason", "message")}
    output.answer_job(
        job=job.job_id, state=job.state, reason=row["reason"], message=row["message"], report=report, **extra
    )
    output.table(["", ""], [(name, value) for name, value in _details(job) if value not in ("", None)])
    return ExitCode.OK


def run_watch(options: Namespace, output: Output) -> ExitCode:
    """Waits for a job, then fetches what is asked for."""
    wanted = _wanted(options)
    with connect(options) as client:
        job = client.get(options.job)
        ended = wait_for(client, job, output)
        if isinstance(ended, ExitCode):
            return ended
        return conclude(client, ended, wanted, output)


def run_cancel(options: Namespace, output: Output) -> ExitCode:
    """Asks the server to stop a job."""
    with connect(options) as client:
        job = client.cancel(options.job)
    message = _cancelled(job.state)
    output.line(f"job {job.job_id} is {job.state}: {message}")
    output.answer_job(job=job.job_id, state=job.state, message=message)
    return ExitCode.OK


def _cancelled(state: JobState) -> str:
    if state is JobState.CANCELLED:
        return "the job is cancelled"
    return "it had ended before" if state.is_terminal else "the job will be CANCELLED once its worker is gone"


def run_delete(options: Namespace, output: Output) -> ExitCode:
    """Deletes a job that has ended."""
    with connect(options) as client:
        client.delete(options.job)
    output.line(f"job {options.job} is deleted")
    output.answer_job(job=options.job, message="the job is deleted")
    return ExitCode.OK


def run_fetch(options: Namespace, output: Output) -> ExitCode:
    """Fetches the files of a job that has ended."""
    wanted = _wanted(options)
    if wanted == WantedFiles():
        raise UsageError("nothing to fetch: give -o OUT.pt, --report OUT.json or --html OUT.html")
    with connect(options) as client:
        job = client.get(options.job)
        if not job.state.is_terminal:
            raise FailedPreconditionError(
                f"job {job.job_id} is {job.state}; wait for it with: prune watch {job.job_id}",
                reason="JOB_NOT_TERMINAL",
            )
        code = conclude(client, job, wanted, output)
    has_model = job.result is not None and job.result.model_artifact_id
    # What was asked for is the files, and here they are, whatever the verdict was.
    return ExitCode.OK if has_model and code is ExitCode.FAILED else code


def _wanted(options: Namespace) -> WantedFiles:
    wanted = WantedFiles(model=options.output, report=options.report, html=options.html)
    wanted.check()
    return wanted


def job_row(job: Job) -> dict[str, Any]:
    """Returns the job as `prune jobs --json` prints it."""
    progress, result, failure = job.progress, job.result, job.failure
    target = job.spec.target
    return {
        "job": job.job_id,
        "state": job.state,
        "phase": None if progress is None else progress.phase,
        "fraction": None if progress is None else progress.fraction,
        "strategy": strategy_name(job.spec.strategy),
        "granularity": job.spec.strategy.granularity,
        "target": None if target is None else {target_name(target): target.value},
        "device": job.spec.device,
        "attempt": job.attempt,
        "verdict": None if result is None else result.verdict,
        "sparsity": None if result is None else result.sparsity,
        "reason": None if failure is None else failure.reason,
        "message": None if failure is None else failure.message,
        "created": _time(job.create_time),
        "started": _time(job.start_time),
        "ended": _time(job.end_time),
        "expires": _time(job.expire_time),
        "labels": dict(job.labels),
    }


def _cells(row: dict[str, Any]) -> list[object]:
    fraction, sparsity, has_ended = row["fraction"], row["sparsity"], row["state"].is_terminal
    return [
        row["job"],
        row["state"] if row["reason"] is None else f"{row['state']} ({row['reason']})",
        "" if has_ended else row["phase"] or "",
        "" if has_ended or fraction is None else f"{fraction:.0%}",
        row["strategy"],
        _target_text(row["target"]),
        row["verdict"] or "",
        "" if sparsity is None else f"{sparsity:.2%}",
        row["created"] or "",
    ]


def _target_text(target: dict[str, float] | None) -> str:
    return "" if target is None else " ".join(f"{name} {value:g}" for name, value in target.items())


def _details(job: Job) -> list[tuple[str, object]]:
    row, spec = job_row(job), job.spec
    progress, failure = job.progress, job.failure
    lines: list[tuple[str, object]] = [
        ("job", job.job_id),
        ("state", job.state),
        ("failed because", "" if failure is None else f"{failure.reason}: {failure.message}"),
        ("failed in", "" if failure is None else failure.phase or ""),
        (
            "progress",
            "" if progress is None or job.state.is_terminal else f"{progress.phase or ''} {progress.fraction:.0%}",
        ),
        ("attempt", f"{job.attempt} of {job.max_attempts}" if job.attempt else ""),
        *((name, row[name] or "") for name in ("created", "started", "ended", "expires")),
        *_spec_lines(spec),
        *((f"label {name}", value) for name, value in job.labels.items()),
    ]
    if job.result is not None:
        lines += [
            ("verdict", job.result.verdict or ""),
            ("reached sparsity", f"{job.result.sparsity:.2%}"),
            ("model artifact", job.result.model_artifact_id),
            ("report artifact", job.result.report_artifact_id),
        ]
    return lines


def _spec_lines(spec: Submission) -> list[tuple[str, object]]:
    strategy = spec.strategy
    row_target = None if spec.target is None else {target_name(spec.target): spec.target.value}
    loss = spec.loss.artifact_id if isinstance(spec.loss, StoredArtifact) else spec.loss
    return [
        ("strategy", strategy_name(strategy)),
        ("granularity", strategy.granularity or ""),
        *_strategy_lines(strategy),
        ("target", _target_text(row_target)),
        ("min channels", strategy.channels.min_channels or ""),
        ("multiple", strategy.channels.multiple or ""),
        ("left alone", ", ".join(spec.exclude_layers)),
        ("device", spec.device),
        ("epochs", "none: no recovery" if not spec.recovery else "automatic" if spec.epochs is None else spec.epochs),
        ("task", spec.task or ""),
        ("loss", loss or ""),
        ("margin", "" if spec.margin is None else spec.margin),
        ("required verdict", spec.required_verdict or ""),
        ("seed", spec.seed),
    ]


def _strategy_lines(strategy: Strategy) -> list[tuple[str, object]]:
    if isinstance(strategy, Conditional):
        risk = strategy.risk
        certified = (
            "" if risk is None else f"a loss above {risk.max_loss} with a probability of {risk.error_probability}"
        )
        return [("condition", strategy.condition), ("risk", certified)]
    pattern = strategy.nm_pattern
    lines: list[tuple[str, object]] = [
        ("pattern", "" if pattern is None else f"{pattern.n}:{pattern.m}"),
        ("criterion", strategy.criterion),
        ("scope", strategy.scope or ""),
    ]
    if isinstance(strategy, Dynamic):
        lines += [
            ("schedule", strategy.schedule),
            ("continued from", strategy.continue_from_job_id),
            ("inference gate", "asked for" if strategy.inference_gate else ""),
        ]
    return lines


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.strftime("%Y-%m-%dT%H:%M:%SZ")
