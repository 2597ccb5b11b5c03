"""Follows a job's events, across restarts of the server, without losing or repeating one."""

from __future__ import annotations

from collections.abc import Iterator

from pruning_api.v1 import pruning_job_service_pb2 as api
from pruning_client.connection import Connection
from pruning_client.errors import (
    CallCancelledError,
    DeadlineExceededError,
    PruningClientError,
    UnavailableError,
    WaitTimeoutError,
)
from pruning_client.retries import Outage, may_be_endured
from pruning_client.transfer.stall import StallGuard
from pruning_client.values import Event, Heartbeat, JobState, Snapshot, StateChange
from pruning_client.wire.answers import event_from_wire

# The server sends a heartbeat every 15 seconds.
_SILENCE_SECONDS = 60.0


def watch(
    connection: Connection, job_id: str, after_sequence: int = 0, timeout_seconds: float | None = None
) -> Iterator[Event]:
    """Yields a snapshot, then every event after `after_sequence`, until the job is terminal.

    Reconnects where the connection is cut or the server restarts; another snapshot then comes in between, and numbered
    events come once each, in order.

    Raises:
        WaitTimeoutError: `timeout_seconds` are over.
        PruningClientError: the server refused it, or could not be reached for too long.
    """
    deadline = None if timeout_seconds is None else connection.timing.now() + timeout_seconds
    outage = Outage(connection.policy, connection.timing)
    seen, state = after_sequence, JobState.UNKNOWN
    while True:
        try:
            for event in _stream(connection, job_id, seen, _remaining(connection, job_id, deadline)):
                if isinstance(event.body, Snapshot):
                    outage.reached()
                    state = event.body.job.state
                    yield event
                    continue
                outage.over()
                if not isinstance(event.body, Heartbeat):
                    if event.sequence <= seen:
                        continue
                    seen = event.sequence
                    state = event.body.state if isinstance(event.body, StateChange) else state
                yield event
            if state.is_terminal:
                return
            outage.endure(UnavailableError(f"the server at {connection.server} ended the watch before the job ended"))
        except DeadlineExceededError as error:
            _remaining(connection, job_id, deadline)
            outage.endure(error)
        except PruningClientError as error:
            if not may_be_endured(error):
                raise
            outage.endure(error)


def _remaining(connection: Connection, job_id: str, deadline: float | None) -> float | None:
    if deadline is None:
        return None
    seconds = deadline - connection.timing.now()
    if seconds <= 0:
        raise WaitTimeoutError(f"job {job_id} has not ended within the time given; it goes on")
    return seconds


def _stream(connection: Connection, job_id: str, after_sequence: int, timeout_seconds: float | None) -> Iterator[Event]:
    call = connection.jobs.WatchPruningJob(
        api.WatchPruningJobRequest(job_id=job_id, after_sequence=after_sequence),
        timeout=timeout_seconds,
        metadata=connection.metadata,
    )
    with StallGuard(call, _SILENCE_SECONDS) as guard:
        try:
            with connection.translated_errors():
                for message in call:
                    guard.beat()
                    event = event_from_wire(message.event)
                    if event is not None:
                        yield event
                    guard.beat()  # time that the caller took is not silence of the server
        except CallCancelledError as error:
            raise UnavailableError(f"the server at {connection.server} fell silent") from error
        finally:
            call.cancel()  # the caller may have stopped early
