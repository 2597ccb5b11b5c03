"""`prune report`."""

from __future__ import annotations

import json
from argparse import Namespace

from pruning_client.cli.exit_codes import ExitCode
from pruning_client.cli.following import require_report_extra
from pruning_client.cli.output import Output
from pruning_client.cli.paths import check_outputs, write_text_atomically
from pruning_client.errors import BadInputError
from pruning_client.reading import section, text


def run_report(options: Namespace, output: Output) -> ExitCode:
    """Turns a report into one HTML page."""
    require_report_extra()
    from pruning_client.html.page import render_page  # noqa: PLC0415 - needs an extra

    try:
        content = options.source.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read {options.source}: {error.strerror}", reason="FILE_UNREADABLE") from error
    try:
        report = json.loads(content)
    except ValueError as error:
        raise BadInputError(f"{options.source} is not JSON: {error}", reason="NOT_A_REPORT") from error
    if not isinstance(report, dict) or "schema_version" not in report:
        raise BadInputError(f"{options.source} is no report of this service: no schema_version", reason="NOT_A_REPORT")
    check_outputs([("-o", options.output)], (options.source,))
    write_text_atomically(options.output, render_page(report))
    output.line(f"wrote {options.output}")
    job = text(section(report, "job"), "job_id") or text(section(report, "provenance"), "job_id") or None
    output.answer_job(job=job, message=f"wrote {options.output}", report=report)
    return ExitCode.OK
