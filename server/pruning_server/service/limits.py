"""Bounds on how many calls of a kind run at a time: a sync server gives each a thread, and they must not take all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from pruning_server.errors import CapacityError, Reason
from pruning_server.service.handlers import Behavior, Method, StreamBehavior, wrap


class CallGroup:
    """At most `limit` calls at a time; one too many is refused at once, and told when to come again."""

    def __init__(self, what: str, limit: int, retry_after_seconds: float) -> None:
        self.limit = limit
        self._what = what
        self._retry_after_seconds = retry_after_seconds
        self._free = threading.BoundedSemaphore(limit)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Holds one of the places.

        Raises:
            CapacityError: all are taken.
        """
        if not self._free.acquire(blocking=False):
            raise CapacityError(
                Reason.TOO_MANY_CALLS,
                f"the server serves {self.limit} {self._what} at a time; try again",
                retry_after_seconds=self._retry_after_seconds,
            )
        try:
            yield
        finally:
            self._free.release()


class LimitInterceptor(grpc.ServerInterceptor):
    """Applies groups to the methods that belong to one; `groups`: `package.Service/Method` to its group."""

    def __init__(self, groups: Mapping[str, CallGroup]) -> None:
        self._groups = dict(groups)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the method."""
        handler = continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or path.removeprefix("/") not in self._groups:
            return handler
        return wrap(handler, path, self)

    def single(self, method: Method, behavior: Behavior) -> Behavior:
        """Holds a place while the call runs."""
        group = self._groups[method.path]

        def limited(request: Any, context: grpc.ServicerContext) -> Any:
            with group.slot():
                return behavior(request, context)

        return limited

    def stream(self, method: Method, behavior: StreamBehavior) -> StreamBehavior:
        """Holds a place until the stream ends."""
        group = self._groups[method.path]

        def limited(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with group.slot():
                yield from behavior(request, context)

        return limited
