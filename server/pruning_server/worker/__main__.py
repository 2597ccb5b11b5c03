"""The worker's process.

    python -m pruning_server.worker run   --workspace DIR --events-fd N [--memory-bytes M]
    python -m pruning_server.worker check --workspace DIR --events-fd N [--memory-bytes M]
    python -m pruning_server.worker inspect FOLDER [--memory-bytes M]
    python -m pruning_server.worker probe

`run` and `check` say everything over the pipe N (`jobs/events.py`) and end with exit code 0 after their last message,
also where that is a failure. `inspect` leaves its answer in the folder (`jobs/inspection.py`). `probe` prints one line of JSON (`jobs/probe.py`).
"""

from __future__ import annotations

import argparse
import compileall
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from pruning_server.errors import ServiceError
from pruning_server.jobs.events import WorkerMessage
from pruning_server.jobs.inspection import ANSWER_FILE, TASK_FILE, InspectionAnswer, InspectionTask
from pruning_server.spec.base import from_json, to_json
from pruning_server.worker.channel import Channel
from pruning_server.worker.failures import failure_message, inspection_refusal
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.hygiene import contain, limit_memory, set_threads
from pruning_server.worker.story import Story


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code."""
    arguments = _parser().parse_args(argv)
    contain()
    # One line per use of TorchScript would bury what a model itself writes to stderr.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
    if arguments.command == "probe":
        from pruning_server.worker.probe import probe  # noqa: PLC0415 - torch loads after the process is contained

        sys.stdout.write(to_json(probe()).decode() + "\n")
        sys.stdout.flush()
        # From inside the sandbox nobody can: without this, workers of an editable installation compile anew each time.
        compileall.compile_dir(Path(__file__).parent.parent, quiet=2)
        return 0
    if arguments.command == "inspect":
        _inspect(arguments)
        return 0
    with Channel(arguments.events_fd) as channel:
        channel.send(_last_message(arguments, channel))
    return 0


def _last_message(arguments: argparse.Namespace, channel: Channel) -> WorkerMessage:
    story = Story(channel, SystemClock())
    try:
        folder = RunFolder(arguments.workspace)
        job = folder.job()
        # CUDA maps the device's memory into the process, so that its private memory says nothing.
        if arguments.memory_bytes is not None and job.device == "cpu":
            limit_memory(arguments.memory_bytes)
        set_threads(job.threads)
        from pruning_server.worker import commands  # noqa: PLC0415 - torch reads the number of threads when it loads

        if arguments.command == "check":
            return commands.check(folder)
        return commands.run(folder, story)
    except Exception as error:  # noqa: BLE001 - whatever ends a run must be told to the server, as its last message
        if not isinstance(error, ServiceError):
            traceback.print_exc()
        return failure_message(error, story.phase)


def _inspect(arguments: argparse.Namespace) -> None:
    """Writes the answer, whole or not at all."""
    folder = RunFolder(arguments.folder)
    folder.write(ANSWER_FILE, to_json(_inspection_answer(arguments)))


def _inspection_answer(arguments: argparse.Namespace) -> InspectionAnswer:
    try:
        task = from_json((arguments.folder / TASK_FILE).read_bytes(), InspectionTask)
        if arguments.memory_bytes is not None:
            limit_memory(arguments.memory_bytes)
        set_threads(task.threads)
        from pruning_server.worker.inspecting import carry_out  # noqa: PLC0415 - torch reads the number of threads

        return InspectionAnswer(inspection=carry_out(arguments.folder, task))
    except Exception as error:  # noqa: BLE001 - as for a run
        if not isinstance(error, ServiceError):
            traceback.print_exc()
        return InspectionAnswer(refusal=inspection_refusal(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pruning_server.worker", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("run", "run the job of a folder"), ("check", "check what a run left in its folder")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--workspace", type=Path, required=True, help="the folder of the run")
        command.add_argument("--events-fd", type=int, required=True, help="file descriptor that messages go to")
        command.add_argument("--memory-bytes", type=int, default=None, help="limit of private memory on the CPU")
    inspect = commands.add_parser("inspect", help="answer the inspection of a folder")
    inspect.add_argument("folder", type=Path, help="the folder of the inspection")
    inspect.add_argument("--memory-bytes", type=int, default=None, help="limit of private memory")
    commands.add_parser("probe", help="print devices and strategies as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
