"""The command `prune`: reads the flags, runs the command, and turns every end into an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Sequence

from pruning_client.cli.arguments import UsageError, build_parser
from pruning_client.cli.exit_codes import ExitCode, exit_code_of_error
from pruning_client.cli.output import Output
from pruning_client.errors import PruningClientError

Command = Callable[[Namespace, Output], ExitCode]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; see `prune --help` for what the codes mean."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _tolerate_any_text()
    output = Output(is_json="--json" in arguments)
    try:
        return _run(arguments, output)
    except UsageError as error:
        output.usage(error.usage)
        output.error(error)
        return ExitCode.BAD_INPUT
    except PruningClientError as error:
        output.error(error)
        return exit_code_of_error(error)
    except KeyboardInterrupt:
        return _interrupted(output, is_submit=arguments[:1] == ["submit"])
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except Exception as error:  # noqa: BLE001 - a person gets one line, not a traceback; PRUNING_DEBUG=1 shows it
        return _unexpected(error, output)


def _run(arguments: list[str], output: Output) -> int:
    options = build_parser().parse_args(arguments)
    code = int(_command(options.command)(options, output))
    sys.stdout.flush()  # here, where a closed pipe is expected
    return code


def _command(name: str) -> Command:
    # Imported one by one: `prune jobs` needs nothing of `prune report`.
    if name == "submit":
        from pruning_client.cli.submit import run_submit  # noqa: PLC0415

        return run_submit
    if name == "verify-generalization":
        from pruning_client.cli.verify_generalization import run_verify_generalization  # noqa: PLC0415

        return run_verify_generalization
    if name == "inspect":
        from pruning_client.cli.inspect import run_inspect  # noqa: PLC0415

        return run_inspect
    if name == "report":
        from pruning_client.cli.report import run_report  # noqa: PLC0415

        return run_report
    from pruning_client.cli import jobs  # noqa: PLC0415

    by_name: dict[str, Command] = {
        "jobs": jobs.run_jobs,
        "show": jobs.run_show,
        "watch": jobs.run_watch,
        "cancel": jobs.run_cancel,
        "delete": jobs.run_delete,
        "fetch": jobs.run_fetch,
    }
    return by_name[name]


def _interrupted(output: Output, *, is_submit: bool) -> int:
    before = " before a job was accepted" if is_submit else ""
    message = f"interrupted{before}; what was sent so far is kept, the same command goes on from there"
    output.note(message)
    output.answer_job(reason="INTERRUPTED", message=message)
    return ExitCode.INTERRUPTED


def _unexpected(error: Exception, output: Output) -> int:
    if os.environ.get("PRUNING_DEBUG") == "1":
        traceback.print_exception(error)
    message = f"unexpected error: {type(error).__name__}: {error} (PRUNING_DEBUG=1 shows where)"
    output.note(message)
    output.answer_job(reason="INTERNAL", message=message)
    return ExitCode.FAILED


def _tolerate_any_text() -> None:
    """A name that the terminal's encoding lacks must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
