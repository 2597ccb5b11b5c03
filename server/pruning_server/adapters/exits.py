"""How a worker ended, and what to tell the caller about it. Pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from pruning_server.adapters.process import ExitStatus
from pruning_server.adapters.usage import Excess, Resource
from pruning_server.errors import Reason
from pruning_server.jobs.events import CheckPassed, RunFailed, RunSucceeded
from pruning_server.jobs.model import Failure
from pruning_server.sandbox.policy import EXIT_NO_SANDBOX, SAYS
from pruning_server.spec.phases import Phase

MAX_TEXT_CHARACTERS = 4000
MEMORY_REMEDY = (
    "Use a smaller fine_tune.batch_size or evaluation.batch_size, allow more with limits.memory_bytes, or start the server"
    " with a higher --memory-per-job."
)
FinalMessage = RunSucceeded | CheckPassed | RunFailed

_MEMORY_SIGNS = re.compile(
    r"MemoryError|bad_alloc|cannot allocate memory|can't allocate memory|not enough memory|out of memory|OutOfMemoryError",
    re.IGNORECASE,
)
_NOT_INSTALLED = re.compile(r"No module named '?(torch|numpy|pruning_server)\b")


class ExitCause(enum.StrEnum):
    """Why a worker is gone; a metric label."""

    # It did its work, or said why there is no model.
    OK = "ok"
    EXCEPTION = "exception"
    SIGNAL = "signal"
    OOM = "oom"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    LOST = "lost"
    # No worker ran, or its files were refused.
    GATE = "gate"


@dataclass(frozen=True)
class Overdue:
    """The limit that a worker was killed for: what took too long, how long it may take, and how to allow more."""

    what: str
    limit_seconds: float
    remedy: str


@dataclass(frozen=True)
class WorkerEnd:
    """Everything that is known of a worker that is gone.

    Attributes:
        overdue: with the causes DEADLINE and LOST, the limit that it was killed for.
        excess: what it was killed for taking too much of.
    """

    cause: ExitCause
    status: ExitStatus
    final: FinalMessage | None
    phase: Phase | None
    overdue: Overdue | None
    stderr_text: str
    stderr_last_line: str
    excess: Excess | None = None

    @property
    def retryable(self) -> bool:
        """Whether another attempt may end otherwise: the worker was killed from outside, crashed, was lost, or had no disk.

        Any other refusal, an exception, a deadline and the worker's own memory limit would only come again.
        """
        if isinstance(self.final, RunFailed) and self.final.reason is Reason.STORAGE_FULL:
            return True
        if self.cause is ExitCause.OOM:
            return self.final is None and self.status.signal_name == "SIGKILL" and not self.status.killed
        return self.cause in {ExitCause.SIGNAL, ExitCause.LOST}


def classify(status: ExitStatus, final: FinalMessage | None, stderr_text: str) -> ExitCause:
    """The cause of a worker's end that nobody asked for."""
    if isinstance(final, RunFailed):
        return _CAUSE_OF_REASON.get(final.reason, ExitCause.OK)
    if final is not None:
        return ExitCause.OK  # What it wrote is complete, and checked next; a crash on the way out changes nothing.
    if status.signal_name == "SIGKILL":
        # Not ours. The kernel kills so when a machine or a container has no memory left, and counts it.
        return ExitCause.OOM if status.memory_ran_out else ExitCause.LOST
    if status.code != 0 and _MEMORY_SIGNS.search(stderr_text):
        return ExitCause.OOM
    if status.signal_name == "SIGXCPU":
        return ExitCause.DEADLINE
    if status.signal_name is not None:
        return ExitCause.SIGNAL
    return ExitCause.EXCEPTION if status.code != 0 else ExitCause.LOST


_CAUSE_OF_REASON = {
    Reason.WORKER_OUT_OF_MEMORY: ExitCause.OOM,
    Reason.WORKER_EXCEPTION: ExitCause.EXCEPTION,
}


def failure_of(end: WorkerEnd, memory_bytes: int | None) -> Failure:
    """What the caller is told about a worker that ended without a model; says what to change."""
    if isinstance(end.final, RunFailed):
        told = {clean_text(k, 100): clean_text(v, 1000) for k, v in list(end.final.metadata.items())[:50]}
        if end.cause is not ExitCause.OK:
            told["exit_cause"] = end.cause.value
        text = clean_text(end.final.text, MAX_TEXT_CHARACTERS)
        return Failure(reason=end.final.reason, message=text, phase=end.final.phase or end.phase, metadata=told)
    where = f" in phase {end.phase.value}" if end.phase is not None else " before its first phase"
    reason, message = _explain(end, where, memory_bytes) if end.excess is None else _explain_excess(end.excess, where)
    metadata = {"exit_cause": end.cause.value}
    if end.status.signal_name is not None and not end.status.killed:
        metadata["signal"] = end.status.signal_name
    if end.excess is not None:
        metadata["limit"] = end.excess.resource.value
    if end.stderr_last_line:
        metadata["stderr_tail"] = end.stderr_last_line
    return Failure(reason=reason, message=message, phase=end.phase, metadata=metadata)


def _explain(end: WorkerEnd, where: str, memory_bytes: int | None) -> tuple[Reason, str]:
    match end.cause:
        case ExitCause.CANCELLED:
            return Reason.CANCELLED, "The job was cancelled."
        case ExitCause.DEADLINE if end.overdue is not None:
            overdue = end.overdue
            took = f"{overdue.what} took longer than {overdue.limit_seconds:g} s; the worker was stopped{where}."
            return Reason.DEADLINE_EXCEEDED, f"{took} {overdue.remedy}"
        case ExitCause.DEADLINE:
            return Reason.DEADLINE_EXCEEDED, f"The worker used up its CPU time{where}. Ask for fewer epochs or samples."
        case ExitCause.OOM:
            return Reason.WORKER_OUT_OF_MEMORY, _explain_memory(end, where, memory_bytes)
        case ExitCause.SIGNAL:
            return Reason.WORKER_SIGNAL, (
                f"The worker was ended by {end.status.signal_name}{where}: native code crashed, most often an operator of"
                " the model. Check in plain torch that the model runs on the validation inputs; another device or a"
                " smaller fine_tune.learning_rate (a diverged run feeds NaN to operators) may avoid it."
            )
        case ExitCause.EXCEPTION:
            return _explain_exception(end, where)
        case _:
            return Reason.WORKER_LOST, _explain_loss(end, where)


def _explain_loss(end: WorkerEnd, where: str) -> str:
    if end.overdue is not None:
        silence = f"The worker gave no sign of life for {end.overdue.limit_seconds:g} s{where} and was stopped."
        return f"{silence} {end.overdue.remedy}"
    if end.status.signal_name == "SIGKILL":
        return f"The worker was killed from outside{where}: by an operator, or by what supervises the server. Submit again."
    return f"The worker ended{where} without saying how the run went."


def _explain_excess(excess: Excess, where: str) -> tuple[Reason, str]:
    """A worker that was stopped because it took too much of something."""
    took = f"The worker took {excess}{where} and was stopped."
    match excess.resource:
        case Resource.MEMORY:
            return Reason.WORKER_OUT_OF_MEMORY, f"{took} {MEMORY_REMEDY}"
        case Resource.DISK:
            remedy = "Send fewer or smaller samples, or give the server's data folder a larger disk."
            return Reason.WORKER_EXCEPTION, f"{took} {remedy}"
        case Resource.THREADS:
            return Reason.WORKER_EXCEPTION, f"{took} No run needs so many; the model starts them."


def _explain_exception(end: WorkerEnd, where: str) -> tuple[Reason, str]:
    if end.status.code == EXIT_NO_SANDBOX and end.stderr_last_line.startswith(SAYS):
        lacking = end.stderr_last_line.removeprefix(SAYS).strip()
        return Reason.INTERNAL, (
            f"The server could not put the worker into its sandbox, so nothing was run ({lacking}). Its operator should run"
            " `python -m pruning_server.sandbox check` where it runs."
        )
    if _NOT_INSTALLED.search(end.stderr_text):
        return Reason.WORKER_NOT_INSTALLED, (
            "The server cannot run jobs, since its installation is incomplete: install 'pruning-service[server]' where it"
            " runs, and restart it."
        )
    detail = f" ({end.stderr_last_line})" if end.stderr_last_line else ""
    return Reason.WORKER_EXCEPTION, f"The worker broke{where}{detail}. The server's log has the details."


def _explain_memory(end: WorkerEnd, where: str, memory_bytes: int | None) -> str:
    limit = f" (limit: {memory_bytes / 2**30:.1f} GiB)" if memory_bytes is not None else ""
    killed = " It was killed from outside, as the kernel does when the machine has no memory left." * end.retryable
    return f"The worker ran out of memory{where}{limit}.{killed} {MEMORY_REMEDY}"


def clean_text(text: str, limit_characters: int) -> str:
    """The text without control characters, capped: it comes from a process that runs a caller's model."""
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if len(shown) <= limit_characters else shown[:limit_characters] + " [...]"
