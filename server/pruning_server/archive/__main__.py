"""The gate's child process: checks one file, prints one line of JSON, and has no way to harm its parent.

    python -m pruning_server.archive check  --kind KIND [--memory-bytes N] SOURCE
    python -m pruning_server.archive repack --kind KIND [--memory-bytes N] [--compress] SOURCE DESTINATION

Exit code 0 with a `GateAnswer` on stdout, accepted or refused; 2 for a wrong command line; anything else is a death.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pruning_server.archive.answer import GateAnswer, Refusal
from pruning_server.archive.model import check_model, repack_model
from pruning_server.archive.refusals import DATASET_REFUSALS, MODEL_REFUSALS
from pruning_server.errors import InvalidArtifactError
from pruning_server.spec.artifacts import Summary
from pruning_server.spec.base import to_json

_PR_SET_PDEATHSIG = 1
_PARENT_VARIABLE = "PRUNING_PARENT_PID"
_PARTIAL_SUFFIX = ".partial"
_DATASET = "dataset"
_KINDS = ("torchscript", "loss", _DATASET)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    options = _parse(arguments)
    _die_with_parent()
    if options.memory_bytes is not None:
        _limit_memory(options.memory_bytes)
    sys.stdout.buffer.write(to_json(_answer(options)) + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pruning_server.archive", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read a file and say what it holds")
    repack = commands.add_parser("repack", help="check a file and write it anew, canonically")
    for command in (check, repack):
        command.add_argument("--kind", choices=_KINDS, required=True)
        command.add_argument("--memory-bytes", type=int, metavar="N", help="memory that the process may use")
        command.add_argument("source", type=Path)
    repack.add_argument("--compress", action="store_true", help="deflate tensors that shrink by a tenth or more")
    repack.add_argument("destination", type=Path)
    return parser.parse_args(arguments)


def _die_with_parent() -> None:
    """Asks the kernel to kill this process with its parent, and notices a parent that was faster."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = os.environ.get(_PARENT_VARIABLE)
    if parent is not None and parent != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


def _limit_memory(limit_bytes: int) -> None:
    """Limits what is allocated. Not the address space: a file that is mapped read-only costs no memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(options: argparse.Namespace) -> GateAnswer:
    refusals = DATASET_REFUSALS if options.kind == _DATASET else MODEL_REFUSALS
    try:
        try:
            return GateAnswer(summary=_carry_out(options))
        except MemoryError:
            raise refusals.is_refused(
                f"reading the {refusals.noun} takes more memory than is allowed for it; send a smaller one"
            ) from None
    except InvalidArtifactError as error:
        return GateAnswer(refusal=Refusal(reason=error.reason, message=error.message, metadata=error.metadata))


def _carry_out(options: argparse.Namespace) -> Summary:
    with options.source.open("rb") as source:
        if options.command == "check":
            return _check(options.kind, source)
        partial = options.destination.with_name(options.destination.name + _PARTIAL_SUFFIX)
        try:
            with partial.open("w+b") as destination:
                summary = _repack(options.kind, source, destination, compress=options.compress)
            # Whoever finds the destination finds all of it.
            partial.replace(options.destination)
        finally:
            partial.unlink(missing_ok=True)
        return summary


def _check(kind: str, source: BinaryIO) -> Summary:
    if kind == _DATASET:
        # Models do not need numpy, whose import would double the time that a small one takes.
        from pruning_server.archive.dataset import check_dataset  # noqa: PLC0415

        return check_dataset(source)
    return check_model(source)


def _repack(kind: str, source: BinaryIO, destination: BinaryIO, *, compress: bool) -> Summary:
    if kind == _DATASET:
        from pruning_server.archive.dataset import repack_dataset  # noqa: PLC0415

        return repack_dataset(source, destination)
    return repack_model(source, destination, compress=compress)


if __name__ == "__main__":
    sys.exit(main())
