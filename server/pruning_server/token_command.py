"""`pruning-server token`: makes, lists and removes the tokens of callers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pruning_server.adapters.token_file import add_token, read_entries, remove_tokens
from pruning_server.errors import InvalidRequestError
from pruning_server.jobs.access import Role

FILE_VARIABLE = "PRUNING_TOKEN_FILE"


def run_token_command(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs the command and returns the exit code.

    A new token goes to stdout and nowhere else: the file gets only its hash.

    Raises:
        InvalidRequestError: the command line makes no sense, or the file cannot be read or written.
        SystemExit: after --help.
    """
    options = _parser(environ).parse_args(argv)
    path: Path | None = options.token_file
    if path is None:
        raise InvalidRequestError.for_field("--token-file", f"is needed (or the variable {FILE_VARIABLE})")
    match options.command:
        case "add":
            sys.stdout.write(add_token(path, options.name, Role(options.role)) + "\n")
        case "list":
            for entry in read_entries(path):
                # Enough of the hash to tell two tokens of one principal apart.
                sys.stdout.write(f"{entry.principal.name} {entry.principal.role} sha256:{entry.sha256[:12]}...\n")
        case _:
            removed = remove_tokens(path, options.name)
            sys.stderr.write(f"removed {removed} of {options.name}'s tokens\n")
            return 0 if removed else 1
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports errors as everything else of the server does."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of exiting."""
        raise InvalidRequestError.for_field("command line", message)


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="pruning-server token", description="Tokens of callers; a server that runs follows the file.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    given = environ.get(FILE_VARIABLE)
    for name, text in (
        ("add", "make a token and print it; it cannot be shown again"),
        ("list", "show whose tokens there are"),
        ("remove", "remove all tokens of a principal"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name != "list":
            command.add_argument("name", metavar="NAME", help="the principal: the owner of jobs and files")
        if name == "add":
            command.add_argument(
                "--role",
                choices=list(Role),
                default=Role.SUBMIT,
                help="read: look at its own jobs and files; submit (default): send and submit as well; admin: see and"
                " cancel everybody's jobs as well",
            )
        command.add_argument(
            "--token-file",
            metavar="FILE",
            type=Path,
            default=Path(given) if given else None,
            help=f"the server's file of tokens (default: ${FILE_VARIABLE})",
        )
    return parser
