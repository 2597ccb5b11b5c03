"""Who calls: the interceptor that finds out, what each role may call, and where a method reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import grpc

from pruning_server.errors import PermissionDeniedError, Reason, UnauthenticatedError
from pruning_server.jobs.access import ANONYMOUS, Principal, RateLimiter, Role, TokenBook, certificate_principal
from pruning_server.service.handlers import Behavior, Method, StreamBehavior, wrap

_HEADER = "authorization"
_BEARER = re.compile(r"[Bb]earer ([\x21-\x7e]{1,512})")
_ATTRIBUTE = "_pruning_principal"


def caller_of(context: grpc.ServicerContext) -> Principal:
    """Returns who calls; anonymous where the server has no authentication."""
    principal: Principal = getattr(context, _ATTRIBUTE, ANONYMOUS)
    return principal


def principal_of(context: grpc.ServicerContext) -> str:
    """Returns the owner of what this call makes."""
    return caller_of(context).name


class Authenticator:
    """Finds out who calls: by token, or without one by the client certificate that TLS has verified.

    Args:
        tokens: who holds which token; None: nobody holds one.
        certificates: whether clients must show certificates, so that those name principals.

    With neither of them everybody is `ANONYMOUS`.
    """

    def __init__(self, tokens: TokenBook | None = None, *, certificates: bool = False) -> None:
        self._tokens = tokens
        self._certificates = certificates

    @property
    def is_on(self) -> bool:
        """Whether callers are told apart."""
        return self._tokens is not None or self._certificates

    def identify(self, context: grpc.ServicerContext) -> Principal:
        """Returns who calls.

        Raises:
            UnauthenticatedError: nobody that this server knows; the message never says what was shown.
        """
        if not self.is_on:
            return ANONYMOUS
        values = [value for key, value in context.invocation_metadata() or () if key == _HEADER]
        if values and self._tokens is not None:
            return self._by_token(values)
        principal = certificate_principal(_certificate_name(context)) if self._certificates else None
        if principal is None:
            wanted = "a token" if self._tokens is not None else "a client certificate that names somebody"
            raise UnauthenticatedError(
                Reason.UNAUTHENTICATED,
                f"this server wants {wanted}: send the header `authorization: Bearer TOKEN` (prune --token-file)"
                if self._tokens is not None
                else f"this server wants {wanted} (a common name, or a subject alternative name)",
            )
        return principal

    def _by_token(self, values: list[str | bytes]) -> Principal:
        match = _BEARER.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
        found = self._tokens.find(match[1]) if match is not None and self._tokens is not None else None
        if found is None:
            text = "this server does not know this token; it may have been removed: ask the server's operator"
            raise UnauthenticatedError(Reason.UNAUTHENTICATED, text)
        return found


class AccessInterceptor(grpc.ServerInterceptor):
    """Lets a call through once it is known who calls, that the role allows it, and that it is not one of too many.

    Args:
        authenticator: finds out who calls.
        roles: `package.Service/Method` to the role that it needs; None: everybody, unknown ones included. A method that
            is missing needs ADMIN.
        rates: requests per second of each principal; None: as many as they like.
    """

    def __init__(
        self, authenticator: Authenticator, roles: Mapping[str, Role | None], rates: RateLimiter | None = None
    ) -> None:
        self._authenticator = authenticator
        self._roles = dict(roles)
        self._rates = rates

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the method."""
        handler = continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or self._roles.get(path.removeprefix("/"), Role.ADMIN) is None:
            return handler
        return wrap(handler, path, self)

    def single(self, method: Method, behavior: Behavior) -> Behavior:
        """Checks before the call."""

        def checked(request: Any, context: grpc.ServicerContext) -> Any:
            self._admit(method, context)
            return behavior(request, context)

        return checked

    def stream(self, method: Method, behavior: StreamBehavior) -> StreamBehavior:
        """Checks before the call, and before each message: a token that is removed ends its streams."""

        def checked(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self._admit(method, context)
            for response in behavior(request, context):
                self._allow(method, context)
                yield response

        return checked

    def _admit(self, method: Method, context: grpc.ServicerContext) -> None:
        principal = self._allow(method, context)
        # The context lives exactly as long as the call.
        setattr(context, _ATTRIBUTE, principal)
        if self._rates is not None:
            self._rates.take(principal.name)

    def _allow(self, method: Method, context: grpc.ServicerContext) -> Principal:
        principal = self._authenticator.identify(context)
        needed = self._roles.get(method.path) or Role.ADMIN
        # Without authentication there are no roles to tell apart.
        if self._authenticator.is_on and not principal.role.allows(needed):
            raise PermissionDeniedError(
                Reason.PERMISSION_DENIED,
                f"{method.name} needs the role {needed}, and {principal.name} has {principal.role}",
            )
        return principal


def _certificate_name(context: grpc.ServicerContext) -> str:
    """The common name of the client's certificate, else its first subject alternative name; empty without either."""
    # The stubs say that values are numbers; grpc gives bytes.
    facts = cast("Mapping[str, Sequence[bytes]]", context.auth_context() or {})
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        values = facts.get(key)
        if values and values[0]:
            return values[0].decode(errors="replace")
    return ""
