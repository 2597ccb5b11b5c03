"""Every error that the client raises, and how an answer of the server becomes one.

PruningClientError
├── BadInputError             a file or value on this side is unusable; nothing was sent     (no code)
├── WaitTimeoutError          the caller's own waiting time is over; the job goes on         (no code)
├── InvalidRequestError       the request must change                                        INVALID_ARGUMENT
├── NotFoundError             no such artifact or job                                        NOT_FOUND
├── AlreadyExistsError        the id is taken by something else                              ALREADY_EXISTS
├── FailedPreconditionError   possible, but not in the present state                         FAILED_PRECONDITION
├── OutOfRangeError           an upload continues elsewhere                                  OUT_OF_RANGE
├── DataLossError             bytes do not match their checksum                              DATA_LOSS
├── ResourceExhaustedError    queue, quota or disk is full                                   RESOURCE_EXHAUSTED
├── UnimplementedError        named in the API, not built in that server                     UNIMPLEMENTED
├── UnavailableError          the server cannot be reached, starts or drains                 UNAVAILABLE
├── DeadlineExceededError     the server did not answer in time                              DEADLINE_EXCEEDED
├── UnauthenticatedError      no token, or a wrong one                                       UNAUTHENTICATED
├── PermissionDeniedError     known, but not allowed                                         PERMISSION_DENIED
├── AbortedError              lost against another call at the same time                     ABORTED
├── CallCancelledError        the call was cancelled (never the job)                         CANCELLED
└── InternalError             a defect of the server                                         INTERNAL, UNKNOWN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that is wrong: its path in the API, e.g. `spec.sparsity`, and what to change."""

    field: str
    description: str


class PruningClientError(Exception):
    """Base of every error of this package; `except PruningClientError` catches them all.

    Attributes:
        reason: stable name in UPPER_SNAKE_CASE, for programs.
        message: what happened and what to change, for people.
        violations: the fields that are wrong, where the server named them.
        retry_after_seconds: when the same call may succeed, where the server knows.
        metadata: details for programs, e.g. the offset at which an upload continues.
    """

    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds
        self.metadata: dict[str, str] = dict(metadata or {})


class BadInputError(PruningClientError):
    """A file or a value on the caller's side cannot be used; nothing was sent."""

    default_reason = "INVALID_FIELD"


class WaitTimeoutError(PruningClientError, TimeoutError):
    """The time that the caller wanted to wait is over; the job goes on."""

    default_reason = "WAIT_TIMEOUT"


class InvalidRequestError(PruningClientError):
    """The request cannot be served as it is; `violations` say which fields and what to change."""

    default_reason = "INVALID_ARGUMENT"


class NotFoundError(PruningClientError, LookupError):
    """There is no such artifact or job, or it is not this caller's."""

    default_reason = "NOT_FOUND"


class AlreadyExistsError(PruningClientError):
    """The id is taken by something else, e.g. a request_id that came with another spec."""

    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(PruningClientError):
    """Possible in general, but not in the present state, e.g. deleting a job that runs."""

    default_reason = "FAILED_PRECONDITION"


class OutOfRangeError(PruningClientError):
    """An upload must continue at another offset; `metadata["committed_size_bytes"]` says where."""

    default_reason = "OUT_OF_RANGE"


class DataLossError(PruningClientError):
    """Bytes that arrived, here or there, do not match their checksum."""

    default_reason = "DATA_LOSS"


class ResourceExhaustedError(PruningClientError):
    """Queue, quota or disk of the server is full; `retry_after_seconds` says when to try again, if that helps."""

    default_reason = "RESOURCE_EXHAUSTED"


class UnimplementedError(PruningClientError):
    """The API names it and that server does not do it."""

    default_reason = "UNIMPLEMENTED"


class UnavailableError(PruningClientError):
    """The server cannot be reached, or it is starting or draining; the same call may succeed later."""

    default_reason = "UNAVAILABLE"


class DeadlineExceededError(PruningClientError):
    """The server did not answer a call in time."""

    default_reason = "DEADLINE_EXCEEDED"


class UnauthenticatedError(PruningClientError):
    """The server wants a token, or does not know this one."""

    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(PruningClientError):
    """The caller is known and may not do this."""

    default_reason = "PERMISSION_DENIED"


class AbortedError(PruningClientError):
    """The call lost against another one at the same time."""

    default_reason = "ABORTED"


class CallCancelledError(PruningClientError):
    """The call was cancelled, which never cancels a job."""

    default_reason = "CALL_CANCELLED"


class InternalError(PruningClientError):
    """A defect of the server; its log says more."""

    default_reason = "INTERNAL"


ERROR_BY_CODE: Mapping[grpc.StatusCode, type[PruningClientError]] = {
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
}


@dataclass
class _Details:
    """What the rich details of a status say."""

    reason: str = ""
    metadata: Mapping[str, str] | None = None
    violations: tuple[FieldViolation, ...] = ()
    retry_after_seconds: float | None = None


def _details_of(error: grpc.Call) -> _Details:
    found = _Details()
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # details that contradict the call's own code: trust the code
        return found
    for packed in status.details if status is not None else ():
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            found.reason, found.metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad_request):
            found.violations = tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations)
        elif packed.Unpack(retry):
            found.retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return found


def from_rpc_error(error: grpc.Call, server: str) -> PruningClientError:
    """Returns the error of this package that says what `error` says.

    Args:
        error: what grpc raised; its call carries the status and its rich details.
        server: the address that was called, for messages about the connection.
    """
    code, text = error.code(), error.details() or ""
    details = _details_of(error)
    if not details.reason:  # no details of our own: the transport speaks, not the service
        text = _transport_message(code, text, server)
    return ERROR_BY_CODE.get(code, InternalError)(
        text or code.name,
        reason=details.reason,
        violations=details.violations,
        retry_after_seconds=details.retry_after_seconds,
        metadata=details.metadata,
    )


def _transport_message(code: grpc.StatusCode, text: str, server: str) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"cannot reach a pruning server at {server}; is it running, and is TLS the same on both sides? ({text})"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the server at {server} did not answer in time"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"the server at {server} does not know this call: another version, or another service? ({text})"
    return text
