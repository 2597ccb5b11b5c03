"""The HTTP endpoint that Prometheus scrapes."""

from __future__ import annotations

import contextlib
import socket
import threading
from socketserver import TCPServer, ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from pruning_server.errors import InvalidRequestError

_MAX_CONNECTIONS = 16
_SOCKET_TIMEOUT_SECONDS = 10.0
# Above what Prometheus waits for a scrape.
_CONNECTION_SECONDS = 30.0
# How soon `close` is noticed.
_POLL_SECONDS = 0.2


class MetricsEndpoint:
    """Serves the registry over HTTP in a daemon thread until `close`.

    Args:
        registry: what is exposed.
        address: `HOST:PORT`, an IPv6 host in brackets; port 0 picks a free one.

    Attributes:
        address: what was bound, `HOST:PORT`.

    Raises:
        InvalidRequestError: the address is malformed, unknown or taken.
    """

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        host, port = split_address(address)
        try:
            family, _, _, _, bind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self._server = _Server(family, (str(bind[0]), int(bind[1])))
        except OSError as error:
            raise InvalidRequestError.for_field(
                "metrics_address",
                f"cannot listen on {address} ({error.strerror or error}); choose another address, or port 0 for any free one",
            ) from error
        self._server.set_app(make_wsgi_app(registry))
        bound_host, bound_port = self._server.server_address[:2]
        self.address = join_address(str(bound_host), int(bound_port))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def split_address(address: str) -> tuple[str, int]:
    """Splits `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        InvalidRequestError: it is neither, or the port is outside 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdigit()):
        raise InvalidRequestError.for_field(
            "metrics_address", f"{address!r} is not HOST:PORT, e.g. 127.0.0.1:9464 or [::1]:9464"
        )
    if int(port) > 65535:
        raise InvalidRequestError.for_field("metrics_address", f"port {port} is above 65535")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _hang_up(connection: socket.socket) -> None:
    """Ends a connection under whoever serves it."""
    with contextlib.suppress(OSError):  # It may just have been closed.
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    """Logs nothing: a scrape every few seconds would bury the log; and gives a silent client up."""

    timeout = _SOCKET_TIMEOUT_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the base class calls by
        """Logs nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    """One thread per connection, and not more than a few of them."""

    daemon_threads = True
    # With the base class's 5, a burst of connections waits for a second until the kernel tries again.
    request_queue_size = 64

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Binds without the reverse name lookup of the base class, which can hang where no name server answers."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Starts a thread for the connection, or drops it while too many are open."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had; the base class drops the connection
            self._free.release()
            raise

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Serves one connection, for a while at most, and makes room for the next."""
        deadline = threading.Timer(_CONNECTION_SECONDS, _hang_up, (request,))
        deadline.daemon = True
        try:
            deadline.start()
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: who scrapes may hang up at any time, and the base class prints a traceback for it."""
