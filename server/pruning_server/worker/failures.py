"""How a run that broke is told: exactly one `RunFailed` with a reason and what to change. Torch-free."""

from __future__ import annotations

import errno

from pruning_server.errors import InvalidRequestError, Reason, ServiceError
from pruning_server.jobs.events import RunFailed
from pruning_server.jobs.inspection import InspectionRefusal
from pruning_server.recovery.raised import is_out_of_memory, last_line
from pruning_server.spec.phases import Phase

OUT_OF_MEMORY_ADVICE = (
    "The run needed more memory than it may use. Send a smaller batch size (fine_tune.batch_size, "
    "evaluation.batch_size), fewer or smaller samples, or raise limits.memory_bytes or the server's memory per job."
)
FULL_DISK_ADVICE = (
    "The server's disk is full. Free some space there, or delete artifacts that are not needed, and submit again."
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def failure_message(error: BaseException, phase: Phase | None) -> RunFailed:
    """The last message of a run that `error` ended in `phase`."""
    if isinstance(error, ServiceError):
        return RunFailed(reason=error.reason, text=error.message, phase=phase, metadata=error.metadata)
    if is_out_of_memory(error):
        text = f"{OUT_OF_MEMORY_ADVICE} ({last_line(error)})"
        return RunFailed(reason=Reason.WORKER_OUT_OF_MEMORY, text=text, phase=phase)
    if isinstance(error, OSError) and error.errno in _FULL:
        return RunFailed(reason=Reason.STORAGE_FULL, text=FULL_DISK_ADVICE, phase=phase)
    text = f"The run ended with {type(error).__name__}: {last_line(error)}"
    return RunFailed(reason=Reason.WORKER_EXCEPTION, text=text, phase=phase, metadata={"type": type(error).__name__})


def inspection_refusal(error: BaseException) -> InspectionRefusal:
    """The answer of an inspection that `error` ended; a violation names the field, else it is about the model."""
    told = failure_message(error, None)
    field, text = "", told.text
    if isinstance(error, InvalidRequestError) and error.violations:
        field, text = error.violations[0].field, error.violations[0].description
    elif isinstance(error, ServiceError):
        field = "model"
    return InspectionRefusal(field=field, reason=told.reason, message=text, metadata=dict(told.metadata))
