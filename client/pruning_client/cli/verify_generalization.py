"""`prune verify-generalization`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning_client.cli.arguments import UsageError, build_parser
from pruning_client.cli.connecting import connect
from pruning_client.cli.exit_codes import ExitCode, exit_code_of_error
from pruning_client.cli.following import require_report_extra
from pruning_client.cli.output import Output
from pruning_client.cli.paths import check_outputs, write_text_atomically
from pruning_client.cli.preflight import preflight
from pruning_client.cli.request import build_submission, check_inputs
from pruning_client.cli.verify_arguments import MAX_CELLS
from pruning_client.errors import BadInputError, PruningClientError
from pruning_client.reading import Section, interval, interval_text, items, metric_text, number, section, text
from pruning_client.spec import Granularity, LatencyRatio, MacsRatio, ParameterRatio, Sparsity, Submission, Target
from pruning_client.verification.grid import Ran, run_grid
from pruning_client.verification.summary import summarize

_TARGETS: dict[str, type[Target]] = {
    "sparsity": Sparsity,
    "parameter-ratio": ParameterRatio,
    "macs-ratio": MacsRatio,
    "latency-ratio": LatencyRatio,
}
_AGAIN = "what has ended is kept on the server; the same command goes on from there"
RESULT, PAGE = "verification.json", "verification.html"


def run_verify_generalization(options: Namespace, output: Output) -> ExitCode:
    """Runs the grid, writes the files and says what can be concluded."""
    name = options.target or _default_target(options)
    targets = _targets(options, name)
    submission = _submission(options, name, targets[0])
    files = check_inputs(submission)
    wanted = _wanted(options, tuple(files))
    try:
        with connect(options) as client:
            preflight(client, submission, files)
            ran = run_grid(client, submission, targets, options.dropout, at_once=options.parallel, tell=output.note)
    except PruningClientError as error:
        output.error(error)
        output.note(_AGAIN)
        return exit_code_of_error(error)
    except KeyboardInterrupt:
        output.note(f"interrupted; {_AGAIN}")
        output.answer_job(reason="INTERRUPTED", message=_AGAIN)
        return ExitCode.INTERRUPTED
    found = summarize(
        ran, target=name.replace("-", "_"), ratios=[target.value for target in targets], rates=options.dropout
    )
    _write(found, ran, options.output, wanted)
    return _answer(found, ran, wanted, output)


def _default_target(options: Namespace) -> str:
    granularity, _ = options.granularity or (Granularity.WEIGHT, None)
    return "macs-ratio" if granularity in (Granularity.CHANNEL, Granularity.HEAD) else "sparsity"


def _targets(options: Namespace, name: str) -> list[Target]:
    """The targets, from the least to the most pruned."""
    for ratio in options.ratios:
        if ratio == (1.0 if name == "sparsity" else 0.0):
            raise UsageError(f"argument --ratios: {ratio:g} would leave nothing of the model ({name})")
    if any(rate == 1.0 for rate in options.dropout):
        raise UsageError("argument --dropout: a rate of 1 would drop everything; rates are below 1")
    if len(options.ratios) * len(options.dropout) > MAX_CELLS:
        raise UsageError(
            f"{len(options.ratios)} ratios x {len(options.dropout)} rates: at most {MAX_CELLS} jobs in all"
        )
    return [_TARGETS[name](ratio) for ratio in sorted(options.ratios, reverse=name != "sparsity")]


def _submission(options: Namespace, name: str, target: Target) -> Submission:
    """What the jobs have in common: flags that this command lacks are as `prune submit` has them by default."""
    if options.no_recovery or options.epochs == 0:
        raise UsageError("without fine-tuning there is no dropout to vary: drop --no-recovery and --epochs 0")
    if options.strategy == "conditional":
        raise UsageError("argument --strategy: a condition decides itself how far to prune; use static or dynamic")
    flag = f"--{name}={target.value!r}"
    needed = [
        "submit",
        str(options.model),
        "--validation",
        str(options.validation),
        "--strategy",
        options.strategy,
        flag,
    ]
    given = {key: value for key, value in vars(options).items() if key not in ("target", "dropout", "output", "html")}
    return build_submission(Namespace(**(vars(build_parser().parse_args(needed)) | given)))


def _wanted(options: Namespace, inputs: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """The files to write, with what they are; checked before anything is sent.

    Raises:
        BadInputError: one cannot be written, or the page not rendered.
    """
    wanted: list[tuple[str, Path]] = []
    if options.output is not None:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"-o {options.output}: {error.strerror}", reason="OUTPUT_NOT_WRITABLE") from error
        wanted.append(("Result", options.output / RESULT))
        if options.html is None and _can_render():
            wanted.append(("Page", options.output / PAGE))
    if options.html is not None:
        require_report_extra()
        wanted.append(("Page", options.html))
    flags = {"Result": "-o", "Page": "--html"}
    check_outputs([(flags[what], path) for what, path in wanted], inputs)
    return wanted


def _can_render() -> bool:
    try:
        require_report_extra()
    except BadInputError:
        return False
    return True


def _write(found: Section, ran: Sequence[Ran], folder: Path | None, wanted: Sequence[tuple[str, Path]]) -> None:
    for what, path in wanted:
        if what == "Result":
            write_text_atomically(path, f"{json.dumps(found, indent=1)}\n")
        else:
            from pruning_client.verification.page import render_verification  # noqa: PLC0415 - needs an extra

            write_text_atomically(path, render_verification(found))
    for one in ran if folder is not None else ():
        if folder is not None and one.report is not None:
            name = f"report-{one.cell.ratio:g}-dropout-{one.cell.dropout:g}.json"
            write_text_atomically(folder / name, json.dumps(one.report))


def _answer(found: dict[str, Any], ran: Sequence[Ran], wanted: Sequence[tuple[str, Path]], output: Output) -> ExitCode:
    metric, conclusion = text(found, "metric"), text(found, "conclusion")
    rows = [
        (
            f"{number(cell, 'ratio'):g}",
            f"{number(cell, 'dropout'):g}",
            *(
                f"{metric_text(metric, number(section(cell, which), 'delta'), signed=True)}"
                f" {interval_text(metric, interval(section(cell, which)))}"
                for which in ("clean", "occlusion")
            ),
            text(section(cell, "clean"), "verdict") or text(cell, "state"),
        )
        for cell in items(found, "cells")
    ]
    output.table((text(found, "target"), "dropout", metric, f"{metric} under occlusion", "verdict"), rows)
    output.line(conclusion)
    for note in items(found, "notes"):
        output.note(str(note))
    for what, path in wanted:
        output.line(f"{what:<8} {path}")
    missing = [one for one in ran if one.report is None]
    reason = "JOBS_FAILED" if missing else None
    output.answer_job(reason=reason, message=conclusion, verification=found)
    if missing:
        failure = missing[0].job.failure
        why = "" if failure is None else f": {failure.reason}: {failure.message}"
        output.note(f"{len(missing)} of {len(ran)} jobs left no report, e.g. {missing[0].job.job_id}{why}")
    return ExitCode.FAILED if missing else ExitCode.OK
