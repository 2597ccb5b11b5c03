"""How a run that broke is told: exactly one `RunFailed` with a reason and what to change. Torch-free."""

from __future__ import annotations

from pruning_server.errors import Reason, ServiceError
from pruning_server.jobs.events import RunFailed
from pruning_server.recovery.memory import is_out_of_memory
from pruning_server.spec.phases import Phase

MAX_QUOTED_CHARACTERS = 600
OUT_OF_MEMORY_ADVICE = (
    "The run needed more memory than it may use. Send a smaller batch size (fine_tune.batch_size, "
    "evaluation.batch_size), fewer or smaller samples, or raise limits.memory_bytes or the server's memory per job."
)


def failure_message(error: BaseException, phase: Phase | None) -> RunFailed:
    """The last message of a run that `error` ended in `phase`."""
    if isinstance(error, ServiceError):
        return RunFailed(reason=error.reason, text=error.message, phase=phase, metadata=error.metadata)
    if is_out_of_memory(error):
        text = f"{OUT_OF_MEMORY_ADVICE} ({last_line(error)})"
        return RunFailed(reason=Reason.WORKER_OUT_OF_MEMORY, text=text, phase=phase)
    text = f"The run ended with {type(error).__name__}: {last_line(error)}"
    return RunFailed(reason=Reason.WORKER_EXCEPTION, text=text, phase=phase, metadata={"type": type(error).__name__})


def last_line(error: BaseException) -> str:
    """The last line of an error that says something, printable and capped.

    TorchScript puts its traceback, many lines of it, before what was raised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    text = text.removeprefix("builtins.")
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= MAX_QUOTED_CHARACTERS else shown[:MAX_QUOTED_CHARACTERS] + " [...]"


def sentence(error: BaseException) -> str:
    """The last line, ended by a full stop, to be followed by advice."""
    text = last_line(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."
