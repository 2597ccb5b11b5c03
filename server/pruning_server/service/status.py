"""Errors of the service as gRPC statuses: one table, and the rich details of google.rpc.

The inverse is `pruning_client.errors`; a test proves both total.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from pruning_server import errors
from pruning_server.errors import CapacityError, FieldViolation, InvalidRequestError, Reason, ServiceError
from pruning_server.service.converters_common import duration

DOMAIN = "pruning-service"

CODE_BY_ERROR: Mapping[type[ServiceError], grpc.StatusCode] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidArtifactError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OffsetError: grpc.StatusCode.OUT_OF_RANGE,
    errors.ChecksumError: grpc.StatusCode.DATA_LOSS,
    errors.CapacityError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotImplementedFeatureError: grpc.StatusCode.UNIMPLEMENTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
}

# A status travels in HTTP/2 trailers, of which a peer takes 8 KiB in all unless it was told otherwise; the message goes
# twice, and binary trailers grow by a third. What is cut is said to be cut.
MAX_MESSAGE_BYTES = 1200
MAX_DETAILS_BYTES = 2400
MAX_METADATA_VALUE_BYTES = 300
MAX_METADATA_BYTES = 900

_log = logging.getLogger(__name__)


def code_of(error: BaseException) -> grpc.StatusCode:
    """Returns the code of an error; INTERNAL for whatever is not in the table."""
    for kind in type(error).__mro__:
        if kind in CODE_BY_ERROR:
            return CODE_BY_ERROR[kind]
    return grpc.StatusCode.INTERNAL


def status_of(error: BaseException, call: str) -> grpc.Status:
    """Returns the status of an error that a call raised; logs it, with its traceback, if nobody raised it on purpose."""
    code = code_of(error)
    if not isinstance(error, ServiceError) or code is grpc.StatusCode.INTERNAL:
        return _incident(error, call)
    return _status(code, error.message, _details(error))


def _incident(error: BaseException, call: str) -> grpc.Status:
    incident_id = uuid.uuid4().hex[:12]
    _log.error("incident %s in %s", incident_id, call, exc_info=error)
    message = f"the server failed at this call; its log has the details under incident {incident_id}"
    info = error_details_pb2.ErrorInfo(
        reason=Reason.INTERNAL.value, domain=DOMAIN, metadata={"incident_id": incident_id}
    )
    return _status(grpc.StatusCode.INTERNAL, message, [info])


def _details(error: ServiceError) -> list[Message]:
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=_bounded(error.metadata))
    details: list[Message] = [info]
    retry_after_seconds: float | None = getattr(error, "retry_after_seconds", None)
    if retry_after_seconds is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(retry_after_seconds)))
    if isinstance(error, CapacityError) and error.quota:
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=error.quota, description=cut(error.message, MAX_METADATA_VALUE_BYTES))
        details.append(failure)
    if isinstance(error, InvalidRequestError) and error.violations:
        details.append(_bad_request(error.violations, MAX_DETAILS_BYTES - info.ByteSize()))
    return details


def _bad_request(violations: tuple[FieldViolation, ...], room_bytes: int) -> error_details_pb2.BadRequest:
    """As many violations as there is room for; the last one says how many are left out."""
    message = error_details_pb2.BadRequest()
    for index, violation in enumerate(violations):
        added = message.field_violations.add(
            field=cut(violation.field, MAX_METADATA_VALUE_BYTES),
            description=cut(violation.description, room_bytes // 2),
        )
        if message.ByteSize() > room_bytes and index > 0:
            added.field = "..."
            added.description = f"and {len(violations) - index} more; correct these first"
            break
    return message


def _bounded(metadata: Mapping[str, str]) -> dict[str, str]:
    bounded: dict[str, str] = {}
    room_bytes = MAX_METADATA_BYTES
    for key, value in metadata.items():
        short = cut(value, MAX_METADATA_VALUE_BYTES)
        room_bytes -= len(key.encode()) + len(short.encode())
        if room_bytes < 0:
            break
        bounded[key] = short
    return bounded


def cut(text: str, limit_bytes: int) -> str:
    """Returns the text, shortened to so many bytes of UTF-8 and marked as such where it is longer."""
    data = text.encode(errors="replace")
    if len(data) <= limit_bytes:
        return data.decode()
    return data[: max(0, limit_bytes - 6)].decode(errors="ignore") + " [...]"


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> grpc.Status:
    # In its own trailer every byte outside ASCII becomes three; count them as such.
    expanded = sum(1 if 0x20 <= byte < 0x7F else 3 for byte in message.encode(errors="replace"))
    limit_bytes = MAX_MESSAGE_BYTES if expanded <= MAX_MESSAGE_BYTES * 3 // 2 else MAX_MESSAGE_BYTES // 2
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=cut(message, limit_bytes))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)
