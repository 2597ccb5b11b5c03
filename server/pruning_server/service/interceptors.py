"""Around every call: errors become statuses, the call is counted and timed, and one line of it is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from pruning_server.errors import ServiceError
from pruning_server.service.handlers import SERVER_STREAM, UNARY, Behavior, Method, StreamBehavior, wrap
from pruning_server.service.principal import principal_of
from pruning_server.service.status import status_of

OTHER = "other"
# They last as long as somebody looks, which says nothing about the server.
UNTIMED = frozenset({"WatchPruningJob", "ServerReflectionInfo"})
# What changes something leaves a line in the log; nothing of a request is ever in it.
MUTATING = frozenset(
    {
        "CreateArtifact",
        "WriteArtifact",
        "DeleteArtifact",
        "CreatePruningJob",
        "CancelPruningJob",
        "DeletePruningJob",
    }
)

_log = logging.getLogger(__name__)


class RpcMetrics(Protocol):
    """Where calls are counted. `kind`: unary, client_stream, server_stream or bidi_stream; unknown methods: `other`."""

    def started(self, kind: str, service: str, method: str) -> None:
        """A call began."""
        ...

    def handled(self, kind: str, service: str, method: str, code: str, seconds: float | None) -> None:
        """A call ended with `code` after `seconds`; None: its time says nothing."""
        ...

    def message_received(self, kind: str, service: str, method: str) -> None:
        """A message of a call arrived."""
        ...

    def message_sent(self, kind: str, service: str, method: str) -> None:
        """A message of a call was sent."""
        ...


class CallInterceptor(grpc.ServerInterceptor):
    """The outermost interceptor.

    Args:
        metrics: where calls are counted.
        monotonic: a clock in seconds.
    """

    def __init__(self, metrics: RpcMetrics, monotonic: Callable[[], float]) -> None:
        self._metrics = metrics
        self._monotonic = monotonic

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the method; one that does not exist is counted under a name that no caller can choose."""
        handler = continuation(handler_call_details)
        if handler is None:
            self._metrics.started(UNARY, OTHER, OTHER)
            self._metrics.handled(UNARY, OTHER, OTHER, grpc.StatusCode.UNIMPLEMENTED.name, None)
            return None
        return wrap(handler, handler_call_details.method, self)

    def single(self, method: Method, behavior: Behavior) -> Behavior:
        """Wraps a method that returns one response."""

        def serve(request: Any, context: grpc.ServicerContext) -> Any:
            with self._call(method, context):
                response = behavior(self._received(method, request), context)
                self._metrics.message_sent(method.kind, method.service, method.name)
                return response

        return serve

    def stream(self, method: Method, behavior: StreamBehavior) -> StreamBehavior:
        """Wraps a method that returns a stream of responses."""

        def serve(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._call(method, context):
                for response in behavior(self._received(method, request), context):
                    yield response
                    self._metrics.message_sent(method.kind, method.service, method.name)

        return serve

    def _received(self, method: Method, request: Any) -> Any:
        """Counts the request, or every message of it as it is taken."""
        if method.kind in {UNARY, SERVER_STREAM}:
            self._metrics.message_received(method.kind, method.service, method.name)
            return request
        return self._counted(method, request)

    def _counted(self, method: Method, messages: Iterable[Any]) -> Iterator[Any]:
        for message in messages:
            self._metrics.message_received(method.kind, method.service, method.name)
            yield message

    @contextmanager
    def _call(self, method: Method, context: grpc.ServicerContext) -> Iterator[None]:
        """Observes one call; an exception in it becomes the call's status."""
        started = self._monotonic()
        self._metrics.started(method.kind, method.service, method.name)
        code, reason = grpc.StatusCode.UNKNOWN.name, "-"
        try:
            yield
            # A method that was told to stop, because nobody listens any more, ends as quietly as one that is done.
            code = _name(_code(context)) if context.is_active() else _gone(context)
        except GeneratorExit:
            code = _gone(context)  # The caller has left, and grpc drops the stream.
            raise
        except Exception as error:
            if _is_settled(error, context):
                code = _gone(context) if _code(context) is None else _name(_code(context))
                raise
            status = status_of(error, method.path)
            code, reason = _name(status.code), error.reason.value if isinstance(error, ServiceError) else "INTERNAL"
            context.abort_with_status(status)
        finally:
            seconds = self._monotonic() - started
            timed = None if method.name in UNTIMED else seconds
            self._metrics.handled(method.kind, method.service, method.name, code, timed)
            level = logging.INFO if method.name in MUTATING else logging.DEBUG
            # Nothing that was sent is in it, and of who sent it only the name: never a token.
            who = principal_of(context)
            _log.log(level, "%s %s %s %.3f s %s %s", method.path, code, reason, seconds, context.peer(), who)


def _is_settled(error: Exception, context: grpc.ServicerContext) -> bool:
    """Whether the call has its status already: the caller left, or the method ended it through the context."""
    caller_left = isinstance(error, grpc.RpcError) and not context.is_active()
    return caller_left or _code(context) is not None


def _gone(context: grpc.ServicerContext) -> str:
    """The code of a call that its caller no longer waits for."""
    remaining_seconds = context.time_remaining()
    late = remaining_seconds is not None and remaining_seconds <= 0
    return _name(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED)


def _code(context: grpc.ServicerContext) -> grpc.StatusCode | None:
    """The code that the method gave the call, if it did."""
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # the stubs lack it
    return code


def _name(code: grpc.StatusCode | None) -> str:
    return (code or grpc.StatusCode.OK).name
