"""Exit codes that scripts rely on."""

from __future__ import annotations

import enum

from pruning_client.errors import (
    BadInputError,
    DeadlineExceededError,
    InvalidRequestError,
    PruningClientError,
    UnavailableError,
    UnimplementedError,
)
from pruning_client.values import JobState


class ExitCode(enum.IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1  # the job failed, a required verdict was not reached, or something unexpected happened
    BAD_INPUT = 2
    UNREACHABLE = 3
    CANCELLED = 4
    REFUSED = 5
    INTERRUPTED = 130


_BY_STATE = {JobState.SUCCEEDED: ExitCode.OK, JobState.FAILED: ExitCode.FAILED, JobState.CANCELLED: ExitCode.CANCELLED}


def exit_code_of_error(error: PruningClientError) -> ExitCode:
    """Returns the code of a call that was turned down; what the server does not implement is bad usage of it."""
    if isinstance(error, BadInputError | InvalidRequestError | UnimplementedError):
        return ExitCode.BAD_INPUT
    if isinstance(error, UnavailableError | DeadlineExceededError):
        return ExitCode.UNREACHABLE
    return ExitCode.REFUSED


def exit_code_of_state(state: JobState) -> ExitCode:
    """Returns the code of a job that has ended."""
    return _BY_STATE.get(state, ExitCode.FAILED)
