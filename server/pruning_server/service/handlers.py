"""What an interceptor needs to wrap a method, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

# Requests and responses are messages of any method; the generated code types them.
Behavior = Callable[[Any, grpc.ServicerContext], Any]
StreamBehavior = Callable[[Any, grpc.ServicerContext], Iterator[Any]]

UNARY = "unary"
CLIENT_STREAM = "client_stream"
SERVER_STREAM = "server_stream"
BIDI_STREAM = "bidi_stream"

# How to make a handler of a kind, and where it keeps its behaviour.
_MAKERS: dict[str, tuple[Callable[..., Any], str]] = {
    UNARY: (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    CLIENT_STREAM: (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    SERVER_STREAM: (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    BIDI_STREAM: (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}


@dataclass(frozen=True)
class Method:
    """A method by the names that metrics and logs use; `kind` is one of the constants above."""

    kind: str
    service: str
    name: str

    @property
    def path(self) -> str:
        """As in the request, without the leading slash."""
        return f"{self.service}/{self.name}"


class Wrapper(Protocol):
    """Puts something around a method."""

    def single(self, method: Method, behavior: Behavior) -> Behavior:
        """Wraps a method that returns one response."""
        ...

    def stream(self, method: Method, behavior: StreamBehavior) -> StreamBehavior:
        """Wraps a method that returns a stream of responses."""
        ...


def kind_of(handler: grpc.RpcMethodHandler[Any, Any]) -> str:
    """Returns how requests and responses travel."""
    if handler.request_streaming:
        return BIDI_STREAM if handler.response_streaming else CLIENT_STREAM
    return SERVER_STREAM if handler.response_streaming else UNARY


def split_path(path: str) -> tuple[str, str]:
    """Splits `/package.Service/Method`."""
    service, _, name = path.removeprefix("/").partition("/")
    return service, name


def wrap(handler: grpc.RpcMethodHandler[Any, Any], path: str, wrapper: Wrapper) -> grpc.RpcMethodHandler[Any, Any]:
    """Returns the handler with its behaviour wrapped."""
    method = Method(kind_of(handler), *split_path(path))
    make, name = _MAKERS[method.kind]
    behavior: Any = getattr(handler, name)
    if getattr(behavior, "experimental_non_blocking", False):
        # The health service's Watch: it takes a third argument and no thread, so there is nothing to guard.
        return handler
    around = wrapper.stream if handler.response_streaming else wrapper.single
    wrapped: grpc.RpcMethodHandler[Any, Any] = make(
        around(method, behavior),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return wrapped
