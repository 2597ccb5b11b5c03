"""Errors become statuses and statuses errors: both tables are total, and details survive the wire."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest

from helpers.grpc_world import Refusal
from helpers.job_world import RecordingMetrics
from pruning_client.errors import ERROR_BY_CODE, PruningClientError, from_rpc_error
from pruning_server import errors
from pruning_server.errors import FieldViolation, InvalidRequestError, Reason, ServiceError
from pruning_server.service.interceptors import CallInterceptor
from pruning_server.service.status import CODE_BY_ERROR, code_of, cut, status_of

NO_RPC_STATUS = {ServiceError, errors.JobFailureError}


def error_classes() -> set[type[ServiceError]]:
    return {member for _, member in inspect.getmembers(errors, inspect.isclass) if issubclass(member, ServiceError)}


def test_every_error_has_a_code() -> None:
    assert set(CODE_BY_ERROR) == error_classes() - NO_RPC_STATUS


def test_every_code_has_an_error_of_the_client() -> None:
    for code in CODE_BY_ERROR.values():
        assert issubclass(ERROR_BY_CODE[code], PruningClientError)
    assert ERROR_BY_CODE[grpc.StatusCode.INTERNAL]


def test_the_documented_table_is_the_one_in_use() -> None:
    """The tree in errors.py's docstring names a code per class."""
    documented = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if len(words) > 1 and words[-1] in grpc.StatusCode.__members__:
            documented[words[0]] = words[-1]
    assert documented == {kind.__name__: code.name for kind, code in CODE_BY_ERROR.items()}


def test_codes_follow_the_class_tree() -> None:
    class SpecialError(errors.CapacityError):
        """Not in the table by itself."""

    assert code_of(SpecialError(Reason.QUEUE_FULL, "full")) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert code_of(errors.JobFailureError(Reason.INTERNAL, "x")) is grpc.StatusCode.INTERNAL
    assert code_of(KeyError("x")) is grpc.StatusCode.INTERNAL


# --- over the wire ----------------------------------------------------------------------------------------------------


class Raiser:
    """A server with one method that raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception = ValueError()
        self.server = grpc.server(
            futures.ThreadPoolExecutor(2), interceptors=[CallInterceptor(RecordingMetrics(), lambda: 0.0)]
        )
        handlers = {
            "Single": grpc.unary_unary_rpc_method_handler(self._single),
            "Stream": grpc.unary_stream_rpc_method_handler(self._stream),
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def _single(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        raise self.error

    def _stream(self, _request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"first"
        raise self.error

    def caught(self, error: Exception, *, stream: bool = False) -> grpc.RpcError:
        """What a client gets when the method raises `error`."""
        self.error = error
        try:
            if stream:
                responses = self.channel.unary_stream("/test.Service/Stream")(b"", timeout=10)
                assert next(responses) == b"first"
                next(responses)
            else:
                self.channel.unary_unary("/test.Service/Single")(b"", timeout=10)
        except grpc.RpcError as caught:
            return caught
        raise AssertionError("the call did not fail")


@pytest.fixture(scope="module")
def raiser() -> Iterator[Raiser]:
    raiser = Raiser()
    yield raiser
    raiser.channel.close()
    raiser.server.stop(None).wait()


SAMPLES: dict[type[ServiceError], Callable[[], ServiceError]] = {
    errors.CapacityError: lambda: errors.CapacityError(Reason.QUEUE_FULL, "full", retry_after_seconds=2.5),
    errors.NotImplementedFeatureError: lambda: errors.NotImplementedFeatureError("dynamic strategy"),
    errors.OffsetError: lambda: errors.OffsetError(
        Reason.WRONG_OFFSET, "elsewhere", metadata={"committed_size_bytes": "7"}
    ),
    errors.InvalidRequestError: lambda: InvalidRequestError.for_field("spec.sparsity", "must be below 1"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", CODE_BY_ERROR, ids=lambda kind: kind.__name__)
def test_an_error_reaches_the_client_as_itself(kind: type[ServiceError], raiser: Raiser, *, stream: bool) -> None:
    error = SAMPLES.get(kind, lambda: kind(Reason.INVALID_FIELD, "what to change: ä"))()
    answer = from_rpc_error(raiser.caught(error, stream=stream), "server")
    assert type(answer) is ERROR_BY_CODE[CODE_BY_ERROR[kind]]
    assert (answer.reason, answer.message, answer.metadata) == (error.reason.value, error.message, error.metadata)
    assert answer.retry_after_seconds == getattr(error, "retry_after_seconds", None)
    theirs = [(violation.field, violation.description) for violation in answer.violations]
    ours = [(violation.field, violation.description) for violation in getattr(error, "violations", ())]
    assert theirs == ours


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("secret detail"), errors.JobFailureError(Reason.CANCELLED, "secret detail")]
)
def test_a_defect_shows_an_incident_and_nothing_else(
    error: Exception, raiser: Raiser, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    refusal = Refusal(raiser.caught(error, stream=stream))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in refusal.message
    incident = refusal.metadata["incident_id"]
    assert incident in refusal.message
    record = next(record for record in caplog.records if incident in record.getMessage())
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("text", ["x" * 100_000, "ä" * 50_000, "\N{PILE OF POO}" * 30_000, "\x00" * 9_000])
def test_whatever_is_said_fits_the_trailers(text: str, raiser: Raiser) -> None:
    """More than 8 KiB of trailers would turn the answer into another error altogether."""
    violations = tuple(FieldViolation(f"spec.field[{i}]", text[:200]) for i in range(1000))
    error = InvalidRequestError(
        Reason.INVALID_FIELD, text, violations=violations, metadata={f"key-{i}": text for i in range(100)}
    )
    refusal = Refusal(raiser.caught(error))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refusal.message.endswith("[...]")
    assert len(refusal.violations) > 1
    assert "more" in refusal.violations["..."]


def test_one_huge_violation_still_comes() -> None:
    error = InvalidRequestError.for_field("f" * 9000, "d" * 9000)
    status = status_of(error, "call")
    assert sum(len(value) for _, value in status.trailing_metadata) < 6000


@pytest.mark.parametrize(("text", "limit", "expected"), [("short", 10, "short"), ("äääääääää", 12, "äää [...]")])
def test_cut(text: str, limit: int, expected: str) -> None:
    assert cut(text, limit) == expected


def test_surrogates_do_not_break_a_status() -> None:
    assert status_of(errors.NotFoundError(Reason.JOB_NOT_FOUND, "no job '\udcff'"), "call").details
