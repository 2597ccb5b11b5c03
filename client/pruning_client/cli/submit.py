"""`prune submit`."""

from __future__ import annotations

from argparse import Namespace

from pruning_client.cli.connecting import connect
from pruning_client.cli.exit_codes import ExitCode
from pruning_client.cli.following import WantedFiles, conclude, wait_for
from pruning_client.cli.output import Output
from pruning_client.cli.preflight import preflight
from pruning_client.cli.progress import open_progress
from pruning_client.cli.request import build_submission, check_inputs
from pruning_client.values import Job


def run_submit(options: Namespace, output: Output) -> ExitCode:
    """Checks, uploads, submits, waits and fetches."""
    submission = build_submission(options)
    files = check_inputs(submission)
    wanted = WantedFiles(model=options.output, report=options.report, html=options.html)
    wanted.check(inputs=tuple(files))
    with connect(options) as client:
        preflight(client, submission, files)
        with open_progress(output.stderr) as view:
            job = client.submit(
                submission,
                on_upload=lambda path, done, total: view.transfer(f"upload {path.name}", done, total),
                on_note=view.note,
            )
        if options.no_wait:
            return _accepted(job, wanted, output)
        ended = wait_for(client, job, output)
        if isinstance(ended, ExitCode):
            return ended
        return conclude(client, ended, wanted, output)


def _accepted(job: Job, wanted: WantedFiles, output: Output) -> ExitCode:
    output.line(job.job_id)
    output.note(f"job {job.job_id} is {job.state}; wait for it with: prune watch {job.job_id}")
    if wanted != WantedFiles():
        output.note(f"nothing is written with --no-wait; once it has ended: prune fetch {job.job_id} -o OUT.pt")
    output.answer_job(job=job.job_id, state=job.state, message="the job is accepted")
    return ExitCode.OK
