"""The whole error tree of the server. It knows nothing of grpc.

ServiceError
├── InvalidRequestError        the caller must change the request            INVALID_ARGUMENT
│   └── InvalidArtifactError   ... or the file that was sent                 INVALID_ARGUMENT
├── NotFoundError              no such artifact or job (for this caller)     NOT_FOUND
├── UnauthenticatedError       who calls did not show a valid token          UNAUTHENTICATED
├── PermissionDeniedError      the caller's role does not allow it           PERMISSION_DENIED
├── AlreadyExistsError         the id is taken by something else             ALREADY_EXISTS
├── PreconditionError          possible, but not in the present state        FAILED_PRECONDITION
├── OffsetError                an upload continues elsewhere                 OUT_OF_RANGE
├── ChecksumError              bytes do not match their checksum             DATA_LOSS
├── CapacityError              queue, quota or disk is full; may be retried  RESOURCE_EXHAUSTED
├── NotImplementedFeatureError named in the API, not built yet               UNIMPLEMENTED
├── UnavailableError           draining or starting; retry                   UNAVAILABLE
└── JobFailure                 a run ended without a model; becomes FAILED   (never an RPC's status)

The right-hand column is `service/status.py`; its inverse is `pruning_client/errors.py`; a test proves both total.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Reason(enum.StrEnum):
    """Stable names of everything that can go wrong, as sent in `google.rpc.ErrorInfo.reason` and `JobFailure.reason`."""

    # The request
    INVALID_FIELD = "INVALID_FIELD"
    MISSING_FIELD = "MISSING_FIELD"
    INVALID_PAGE_TOKEN = "INVALID_PAGE_TOKEN"  # noqa: S105 - a name, not a password
    UNKNOWN_CRITERION = "UNKNOWN_CRITERION"
    UNKNOWN_DEVICE = "UNKNOWN_DEVICE"
    URI_DENIED = "URI_DENIED"
    URI_UNREADABLE = "URI_UNREADABLE"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"

    # Artifacts
    ARTIFACT_NOT_FOUND = "ARTIFACT_NOT_FOUND"
    ARTIFACT_NOT_ACTIVE = "ARTIFACT_NOT_ACTIVE"
    ARTIFACT_IN_USE = "ARTIFACT_IN_USE"
    ARTIFACT_WRONG_KIND = "ARTIFACT_WRONG_KIND"
    ARTIFACT_TOO_LARGE = "ARTIFACT_TOO_LARGE"
    WRONG_OFFSET = "WRONG_OFFSET"
    UPLOAD_IN_PROGRESS = "UPLOAD_IN_PROGRESS"
    CHUNK_CHECKSUM_MISMATCH = "CHUNK_CHECKSUM_MISMATCH"
    CONTENT_MISMATCH = "CONTENT_MISMATCH"
    STORAGE_FULL = "STORAGE_FULL"

    # The model's archive
    MODEL_NOT_A_ZIP = "MODEL_NOT_A_ZIP"
    MODEL_TRUNCATED = "MODEL_TRUNCATED"
    MODEL_CORRUPT = "MODEL_CORRUPT"
    MODEL_NOT_TORCHSCRIPT = "MODEL_NOT_TORCHSCRIPT"
    MODEL_IS_CHECKPOINT = "MODEL_IS_CHECKPOINT"
    MODEL_VERSION_UNSUPPORTED = "MODEL_VERSION_UNSUPPORTED"
    MODEL_REFUSED = "MODEL_REFUSED"
    MODEL_NO_FORWARD = "MODEL_NO_FORWARD"
    MODEL_NOT_LOADABLE = "MODEL_NOT_LOADABLE"
    MODEL_NOT_FINITE = "MODEL_NOT_FINITE"
    MODEL_INPUT_MISMATCH = "MODEL_INPUT_MISMATCH"
    MODEL_OUTPUT_UNSUPPORTED = "MODEL_OUTPUT_UNSUPPORTED"
    MODEL_RUN_FAILED = "MODEL_RUN_FAILED"
    NOTHING_PRUNABLE = "NOTHING_PRUNABLE"
    EVERYTHING_PRUNED = "EVERYTHING_PRUNED"
    TARGET_UNREACHABLE = "TARGET_UNREACHABLE"

    # The dataset
    DATASET_UNREADABLE = "DATASET_UNREADABLE"
    DATASET_KEYS = "DATASET_KEYS"
    DATASET_DTYPE = "DATASET_DTYPE"
    DATASET_EMPTY = "DATASET_EMPTY"
    DATASET_LENGTHS_DIFFER = "DATASET_LENGTHS_DIFFER"
    DATASET_NOT_FINITE = "DATASET_NOT_FINITE"
    DATASET_TOO_SMALL = "DATASET_TOO_SMALL"
    DATASET_SPLIT = "DATASET_SPLIT"
    DATASET_TARGETS = "DATASET_TARGETS"
    DATASET_LABEL_OUT_OF_RANGE = "DATASET_LABEL_OUT_OF_RANGE"

    # The loss
    LOSS_UNSUITABLE = "LOSS_UNSUITABLE"
    LOSS_NOT_FINITE = "LOSS_NOT_FINITE"

    # Jobs
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    JOB_NOT_TERMINAL = "JOB_NOT_TERMINAL"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    QUEUE_FULL = "QUEUE_FULL"
    DRAINING = "DRAINING"
    CANCELLED = "CANCELLED"
    VERDICT_NOT_REACHED = "VERDICT_NOT_REACHED"
    VERIFICATION_FAILED = "VERIFICATION_FAILED"
    RESULT_REFUSED = "RESULT_REFUSED"

    # The worker's death
    WORKER_EXCEPTION = "WORKER_EXCEPTION"
    WORKER_SIGNAL = "WORKER_SIGNAL"
    WORKER_OUT_OF_MEMORY = "WORKER_OUT_OF_MEMORY"
    WORKER_LOST = "WORKER_LOST"
    WORKER_NOT_INSTALLED = "WORKER_NOT_INSTALLED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    GATE_DEADLINE_EXCEEDED = "GATE_DEADLINE_EXCEEDED"

    # Who calls
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"

    # The server's own limits
    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    RATE_LIMITED = "RATE_LIMITED"

    # The server's own data
    DATABASE_BUSY = "DATABASE_BUSY"
    DATABASE_UNUSABLE = "DATABASE_UNUSABLE"

    INTERNAL = "INTERNAL"


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that is wrong: its path in the API, e.g. `spec.sparsity`, and what to change."""

    field: str
    description: str


class ServiceError(Exception):
    """Base of every error that the service raises on purpose.

    Attributes:
        reason: stable name for programs.
        message: what happened and what to change, for people.
        metadata: details for programs, e.g. the offset at which an upload continues.
    """

    def __init__(self, reason: Reason, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})


class InvalidRequestError(ServiceError):
    """The request cannot be served as it is; `violations` say which fields and what to change."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: tuple[FieldViolation, ...] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata)
        self.violations = violations

    @classmethod
    def for_field(cls, field: str, description: str, reason: Reason = Reason.INVALID_FIELD) -> InvalidRequestError:
        """An error about one field; the message names it."""
        return cls(reason, f"{field}: {description}", violations=(FieldViolation(field, description),))


class InvalidArtifactError(InvalidRequestError):
    """A file that was sent is not what its kind promises."""


class NotFoundError(ServiceError, LookupError):
    """There is no such artifact or job, or it is not this caller's."""


class UnauthenticatedError(ServiceError):
    """The call carries no credentials, or none that this server knows."""


class PermissionDeniedError(ServiceError):
    """The caller is known, and their role does not allow this call."""


class AlreadyExistsError(ServiceError):
    """The id is taken by something else, e.g. a request_id that came with another spec."""


class PreconditionError(ServiceError):
    """Possible in general, but not in the present state, e.g. deleting a job that runs."""


class OffsetError(ServiceError):
    """An upload must continue at another offset; `metadata["committed_size_bytes"]` says where."""


class ChecksumError(ServiceError):
    """Bytes that arrived do not match their checksum."""


class CapacityError(ServiceError):
    """Queue, quota or disk is full. `retry_after_seconds` is None where waiting does not help.

    `quota` names the caller's own bound that is reached, e.g. `queued_jobs`; empty where the whole server is full.
    """

    def __init__(
        self, reason: Reason, message: str, *, retry_after_seconds: float | None = None, quota: str = ""
    ) -> None:
        super().__init__(reason, message, metadata={"quota": quota} if quota else None)
        self.retry_after_seconds = retry_after_seconds
        self.quota = quota


class NotImplementedFeatureError(ServiceError):
    """The API names it and this version does not do it; the message says its name, and what it does instead."""

    def __init__(self, feature: str, instead: str = "") -> None:
        super().__init__(
            Reason.NOT_IMPLEMENTED,
            f"{feature} is not implemented in this version{instead and f'; {instead}'}",
            metadata={"feature": feature},
        )


class UnavailableError(ServiceError):
    """The server is starting or draining; the same call may succeed later."""


class JobFailureError(ServiceError):
    """A run ended without a usable model. Raised in the worker and by the executor; it makes the job FAILED."""
