"""What becomes of a job when something happens to its run: pure decisions, no I/O.

Each function returns None where nothing changes: the job has ended, or the run is not the one that is going on.
"""

from __future__ import annotations

from dataclasses import dataclass

from pruning_server.errors import Reason
from pruning_server.jobs.model import Failure, Job, JobState, Result


@dataclass(frozen=True)
class Change:
    """The state that a job enters, and what comes with it. `extra_attempts`: runs that are given back."""

    state: JobState
    failure: Failure | None = None
    result: Result | None = None
    extra_attempts: int = 0


_CANCELLED = Change(JobState.CANCELLED)


def on_cancel_request(job: Job) -> Change | None:
    """A caller asks to cancel: at once while queued, else when the worker is gone."""
    if job.state is JobState.QUEUED:
        return _CANCELLED
    if job.state is JobState.RUNNING:
        return Change(JobState.CANCELLING)
    return None


def on_success(job: Job, attempt: int, result: Result) -> Change | None:
    """A run ended well; who asked to cancel before gets CANCELLED all the same."""
    if job.attempt != attempt:
        return None
    if job.state is JobState.CANCELLING:
        return _CANCELLED
    if job.state is JobState.RUNNING:
        return Change(JobState.SUCCEEDED, result=result)
    return None


def on_failure(job: Job, attempt: int, failure: Failure, *, retry: bool, result: Result | None) -> Change | None:
    """A run ended badly: again if that may help and attempts are left, else FAILED with what it made so far."""
    if job.attempt != attempt:
        return None
    if job.state is JobState.CANCELLING:
        return _CANCELLED
    if job.state is not JobState.RUNNING:
        return None
    if retry and job.attempt < job.max_attempts:
        return Change(JobState.QUEUED, failure=failure)
    return Change(JobState.FAILED, failure=failure, result=result)


def on_release(job: Job, attempt: int, failure: Failure) -> Change | None:
    """The server ended the run itself: again, and the attempt is given back."""
    if job.attempt != attempt:
        return None
    if job.state is JobState.CANCELLING:
        return _CANCELLED
    if job.state is JobState.RUNNING:
        return Change(JobState.QUEUED, failure=failure, extra_attempts=1)
    return None


def on_dead_server(job: Job, device: str) -> Change | None:
    """The server that ran the job on `device` died: like a failure that may be retried."""
    again = job.attempt < job.max_attempts
    failure = Failure(
        reason=Reason.WORKER_LOST,
        message=(
            f"The server stopped during attempt {job.attempt} of {job.max_attempts} on {device}; "
            + ("the job is queued again." if again else "no attempts are left. Submit the job again.")
        ),
        phase=None if job.progress is None else job.progress.phase,
    )
    return on_failure(job, job.attempt, failure, retry=True, result=None)


def can_serve(device: str, job_device: str) -> bool:
    """Whether `device` (`cpu`, `cuda:N`) can run a job that asks for `job_device` (those, or `cuda`: any)."""
    return device == job_device or (job_device == "cuda" and device.startswith("cuda:"))
