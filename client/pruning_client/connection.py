"""One channel to one server: address, TLS, token, deadlines of unary calls, and errors translated in one place."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc

from pruning_api.v1 import artifact_service_pb2_grpc, pruning_job_service_pb2_grpc
from pruning_client.errors import BadInputError, from_rpc_error
from pruning_client.retries import RetryPolicy, Timing, with_retries

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_TIMEOUT_SECONDS = 60.0
# Calls in which the server reads whole files: a model of gigabytes is checked before its job is accepted.
CHECK_TIMEOUT_SECONDS = 900.0

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class TlsOptions:
    """PEM files: the CA that signed the server's certificate (None: no TLS), and this side's own certificate and key."""

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None


class Connection:
    """The stubs of one server, and how to call them. Threads may share it."""

    def __init__(
        self,
        server: str,
        *,
        tls: TlsOptions | None = None,
        token_file: str | Path | None = None,
        policy: RetryPolicy,
        timing: Timing,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self.server = server
        self.policy = policy
        self.timing = timing
        self._timeout_seconds = timeout_seconds
        is_loopback, tls = _is_loopback(server), tls or TlsOptions()
        if token_file is not None and tls.ca is None and not is_loopback:
            raise BadInputError(f"a token would travel to {server} in the clear; give the server's CA (tls_ca) as well")
        token = None if token_file is None else _read_token(Path(token_file))
        self.metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._channel = _open_channel(server, tls, is_loopback)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(self._channel)
        self.jobs = pruning_job_service_pb2_grpc.PruningJobServiceStub(self._channel)

    def unary(self, method: Callable[..., Any], request: Any, *, timeout_seconds: float | None = None) -> Any:
        """Returns the response of one unary call, with its deadline and retries.

        Raises:
            PruningClientError: the server's answer, or that there was none.
        """
        return with_retries(
            lambda: self.unary_once(method, request, timeout_seconds=timeout_seconds), self.policy, self.timing
        )

    def unary_once(self, method: Callable[..., Any], request: Any, *, timeout_seconds: float | None = None) -> Any:
        """As `unary`, without retries."""
        with self.translated_errors():
            return method(request, timeout=timeout_seconds or self._timeout_seconds, metadata=self.metadata)

    @contextmanager
    def translated_errors(self) -> Iterator[None]:
        """Turns what grpc raises into this package's errors."""
        try:
            yield
        except grpc.RpcError as error:  # every one that grpc raises is a call, too
            raise from_rpc_error(cast("grpc.Call", error), self.server) from error

    def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        self._channel.close()


def check_server_address(server: str) -> str:
    """Returns `server` if it is HOST:PORT, [IPV6]:PORT or unix:PATH.

    Raises:
        BadInputError: it is none of them.
    """
    match = _HOST_PORT.fullmatch(server)
    if server.startswith("unix:") or (match and 0 < int(match["port"]) < 65536):
        return server
    raise BadInputError(f"the server's address must be HOST:PORT, for example {DEFAULT_SERVER}, not {server!r}")


def _is_loopback(server: str) -> bool:
    check_server_address(server)
    if server.startswith("unix:"):
        return True
    host = server.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _open_channel(server: str, tls: TlsOptions, is_loopback: bool) -> grpc.Channel:
    options = [
        # The default waits up to two minutes before it looks at a restarted server again.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # A proxy of the environment cannot reach this machine's own loopback.
        ("grpc.enable_http_proxy", 0 if is_loopback else 1),
    ]
    if (tls.certificate is None) != (tls.key is None):
        raise BadInputError(
            "a certificate of yours goes together with its key (tls_cert, tls_key); give both or neither"
        )
    if tls.ca is None:
        if tls.certificate is not None:
            raise BadInputError("a certificate of yours is shown over TLS only; give the server's CA (tls_ca) as well")
        return grpc.insecure_channel(server, options)
    authorities = _read_pem(tls.ca, "CA certificates", "CERTIFICATE-----")
    certificate = None if tls.certificate is None else _read_pem(tls.certificate, "certificate", "CERTIFICATE-----")
    key = None if tls.key is None else _read_pem(tls.key, "key", "PRIVATE KEY-----")
    return grpc.secure_channel(server, grpc.ssl_channel_credentials(authorities, key, certificate), options)


def _read_pem(path: str | Path, what: str, mark: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read the {what} in {path}: {error.strerror}") from error
    if b"-----BEGIN " not in content or mark.encode() not in content:
        raise BadInputError(f"{path} holds no PEM {what} (-----BEGIN {mark})")
    return content


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise BadInputError(f"cannot read the token in {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        token = ""
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise BadInputError(f"{path} must hold one token: printable ASCII characters on one line, no spaces")
    return token
