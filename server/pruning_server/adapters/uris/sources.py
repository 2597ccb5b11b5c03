"""Where the bytes come from: one GET of one pinned address, or one file under an allowed folder.

The standard library's http.client, on purpose: it opens exactly the socket that it is given, follows nothing, reads no proxy,
cookie or credential of the environment, and a deadline can be put around it. Larger libraries do these things for one.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, unquote

from pruning_server.adapters.uris.policy import NOT_ALLOWED, UriPolicy
from pruning_server.errors import InvalidRequestError, Reason, UnavailableError
from pruning_server.jobs.ports import CancelToken

# One wait for the other side; the whole fetch has a deadline of its own.
SOCKET_TIMEOUT_SECONDS = 20.0
WATCH_SECONDS = 0.5
AGENT = "pruning-service"


class Readable(Protocol):
    """Bytes, in order."""

    def read(self, amount: int, /) -> bytes:
        """Returns at most `amount` bytes; none at the end."""
        ...


@dataclass(frozen=True)
class Remote:
    """A file that was found: its size, and where its bytes can be read once."""

    size_bytes: int
    content: Readable


class _Explained:
    """Content whose errors name the host only."""

    def __init__(self, content: Readable, host: str) -> None:
        self._content = content
        self._host = host

    def read(self, amount: int) -> bytes:
        """Returns at most `amount` bytes; none at the end."""
        with _explained(self._host):
            return self._content.read(amount)


@contextmanager
def open_http(
    parts: SplitResult, policy: UriPolicy, context: ssl.SSLContext, deadline_seconds: float, cancelled: CancelToken
) -> Iterator[Remote]:
    """Asks for the file, of an address that was checked and is then used as it is, so that no second answer of the DNS counts.

    Raises:
        InvalidRequestError: the address is not allowed, or the answer is not the file with its length.
        UnavailableError: the host cannot be reached, is too slow, or failed.
    """
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    address = _resolve(host, port, policy)
    connection = http.client.HTTPConnection(host, port, timeout=SOCKET_TIMEOUT_SECONDS)
    with ExitStack() as opened:
        with _explained(host):
            plain = opened.enter_context(socket.create_connection((address, port), SOCKET_TIMEOUT_SECONDS))
            opened.enter_context(_cut_off(plain, deadline_seconds, cancelled))
            if parts.scheme == "https":
                plain = opened.enter_context(context.wrap_socket(plain, server_hostname=host))
            connection.sock = plain
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": AGENT, "Accept-Encoding": "identity", "Connection": "close"}
            connection.request("GET", target, headers=headers)
            response = opened.enter_context(connection.getresponse())
            size_bytes = _length(response, host)
        yield Remote(size_bytes, _Explained(response, host))


@contextmanager
def open_file(parts: SplitResult, prefix: SplitResult) -> Iterator[Remote]:
    """Opens a plain file whose true place, links resolved, is under the true place of the allowed folder.

    Raises:
        InvalidRequestError: it is not there, not a plain file, or elsewhere.
    """
    refused = InvalidRequestError(Reason.URI_UNREADABLE, "there is no plain file that the server may read")
    folder, path = Path(os.path.realpath(unquote(prefix.path))), Path(os.path.realpath(unquote(parts.path)))
    if not path.is_relative_to(folder):
        raise refused
    try:
        # Without waiting for a pipe's other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise refused from error
    with ExitStack() as opened:
        opened.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        # A folder on the way may have become a link since.
        if not stat.S_ISREG(status.st_mode) or Path(f"/proc/self/fd/{descriptor}").readlink() != path:
            raise refused
        file = opened.enter_context(os.fdopen(descriptor, "rb", closefd=False))
        yield Remote(status.st_size, file)


def _resolve(host: str, port: int, policy: UriPolicy) -> str:
    """Returns an address of the host; refuses it if any of them is not allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(Reason.URI_UNREADABLE, f"the host {host} cannot be found") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(policy.allows_address(address) for address in addresses):
        # Which addresses they are is not the caller's business.
        raise InvalidRequestError(Reason.URI_DENIED, NOT_ALLOWED)
    return addresses[0]


def _length(response: http.client.HTTPResponse, host: str) -> int:
    status = response.status
    if 300 <= status < 400:
        raise InvalidRequestError(
            Reason.URI_UNREADABLE, f"{host} redirects ({status}), which is not followed; give the final address"
        )
    if status >= 500 or status == http.HTTPStatus.TOO_MANY_REQUESTS:
        raise UnavailableError(Reason.URI_UNREADABLE, f"{host} answered {status}; try again later")
    if status != http.HTTPStatus.OK:
        raise InvalidRequestError(Reason.URI_UNREADABLE, f"{host} answered {status}, not 200")
    if response.getheader("Content-Encoding", "identity") != "identity" or response.length is None:
        text = f"{host} sends the file encoded or without its length (Content-Length)"
        raise InvalidRequestError(Reason.URI_UNREADABLE, text)
    return response.length


@contextmanager
def _cut_off(connection: socket.socket, deadline_seconds: float, cancelled: CancelToken) -> Iterator[None]:
    """Ends the connection at the deadline, however slowly something still comes, and when nobody waits any more."""
    # Of its own, since TLS takes over the first one.
    handle, done = socket.socket(fileno=os.dup(connection.fileno())), threading.Event()

    def watch() -> None:
        left = deadline_seconds
        while not done.wait(min(WATCH_SECONDS, max(left, 0.0))):
            left -= WATCH_SECONDS
            if left <= 0 or cancelled.is_set():
                with suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)
                return

    thread = threading.Thread(target=watch, name="fetch-deadline", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        handle.close()


@contextmanager
def _explained(host: str) -> Iterator[None]:
    """Turns what goes wrong on the way into errors that name the host only: a query may hold a secret."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        text = f"the certificate of {host} cannot be trusted ({error.verify_message})"
        raise InvalidRequestError(Reason.URI_UNREADABLE, text) from error
    except (OSError, http.client.HTTPException) as error:
        text = f"the connection to {host} failed or took too long ({type(error).__name__}); try again later"
        raise UnavailableError(Reason.URI_UNREADABLE, text) from None
