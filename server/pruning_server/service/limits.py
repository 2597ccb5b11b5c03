"""Bounds on how many calls of a kind run at a time: a sync server gives each a thread, and they must not take all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from pruning_server.errors import CapacityError, Reason
from pruning_server.service.handlers import Behavior, Method, StreamBehavior, wrap
from pruning_server.service.principal import principal_of


class CallGroup:
    """At most `limit` calls at a time; one too many is refused at once, and told when to come again.

    `per_caller`: of these, the most that one caller holds, so that no one keeps the others out; None: all of them.
    """

    def __init__(self, what: str, limit: int, retry_after_seconds: float, *, per_caller: int | None = None) -> None:
        self.limit = limit
        self.per_caller = limit if per_caller is None else per_caller
        self._what = what
        self._retry_after_seconds = retry_after_seconds
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Holds one of the places.

        Raises:
            CapacityError: all are taken, or the caller's share of them.
        """
        with self._lock:
            mine, all_held = self._held.get(caller, 0), sum(self._held.values())
            if mine >= self.per_caller:
                raise self._refusal(
                    f"the server serves one caller {self.per_caller} {self._what} at a time", self._what
                )
            if all_held >= self.limit:
                raise self._refusal(f"the server serves {self.limit} {self._what} at a time", "")
            self._held[caller] = mine + 1
        try:
            yield
        finally:
            with self._lock:
                self._held[caller] -= 1
                if self._held[caller] == 0:
                    del self._held[caller]

    def _refusal(self, text: str, quota: str) -> CapacityError:
        return CapacityError(
            Reason.TOO_MANY_CALLS,
            f"{text}; try again",
            retry_after_seconds=self._retry_after_seconds,
            quota=quota.replace(" ", "_") if self.per_caller < self.limit else "",
        )


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
            with group.slot(principal_of(context)):
                return behavior(request, context)

        return limited

    def stream(self, method: Method, behavior: StreamBehavior) -> StreamBehavior:
        """Holds a place until the stream ends."""
        group = self._groups[method.path]

        def limited(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with group.slot(principal_of(context)):
                yield from behavior(request, context)

        return limited
