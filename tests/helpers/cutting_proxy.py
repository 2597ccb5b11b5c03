"""A TCP proxy on loopback that cuts connections after a number of bytes from the client or from the server."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self


class CuttingProxy:
    """Forwards to `target`; the i-th cut ends a connection once so many bytes went through it. After the last: no cut.

    Args:
        target: HOST:PORT.
        upload_cuts: bytes from the client after which connections are cut, in order.
        download_cuts: bytes from the server after which connections are cut, in order.
    """

    def __init__(self, target: str, *, upload_cuts: Sequence[int] = (), download_cuts: Sequence[int] = ()) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._limits = {"up": list(upload_cuts), "down": list(download_cuts)}
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts_done = 0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            pair = (client, server)
            with self._lock:
                self._sockets.update(pair)
            limits = {way: self._next_limit(way) for way in ("up", "down")}
            self._start(self._pump, client, server, "up", limits["up"])
            self._start(self._pump, server, client, "down", limits["down"])

    def _next_limit(self, way: str) -> int | None:
        with self._lock:
            return self._limits[way][0] if self._limits[way] else None

    def _pump(self, source: socket.socket, sink: socket.socket, way: str, limit: int | None) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                if limit is not None and passed + len(data) >= limit:
                    sink.sendall(data[: limit - passed])
                    with self._lock:
                        self._limits[way].pop(0)
                        self.cuts_done += 1
                    break
                sink.sendall(data)
                passed += len(data)
        except OSError:
            pass
        self._reset(source, sink)

    def _reset(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with self._lock:
                is_open = one in self._sockets
                self._sockets.discard(one)
            if is_open:
                # An abortive close, as when a cable is pulled and the router says so.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)  # wakes the other thread's recv
                one.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        with self._lock:
            sockets = tuple(self._sockets)
        self._reset(*sockets)
        for thread in self._threads:
            thread.join(timeout=5)
