"""`pruning-server`, or `python -m pruning_server`: reads the settings, runs a server, and stops it at SIGTERM or SIGINT.

When it is ready it prints one line of JSON on stdout, `{"address": ..., "metrics_address": ...}`; its log goes to stderr.
Exit codes: 0 after SIGTERM or SIGINT, 2 if it cannot start as it was asked to.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import FrameType

from pruning_server.errors import ServiceError
from pruning_server.settings import Settings, load_settings, this_machine

# What the extra brings. torch is looked for, not imported: only workers import it.
SERVER_PACKAGES = ("torch", "prometheus_client", "grpc_health", "grpc_reflection", "msgspec")
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FORCED_EXIT_CODE = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a server until it is told to stop, or `pruning-server token ...`; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    try:
        if list(given[:1]) == ["token"]:
            return _manage_tokens(given[1:])
        settings = load_settings(given, os.environ, this_machine(os.environ))
        lacking = missing_packages()
        if lacking:
            names = ", ".join(lacking)
            return _complain(f"cannot start without {names}; install it: pip install 'pruning-service[server]'")
        return _serve(settings)
    except ServiceError as error:
        return _complain(error.message)


def _manage_tokens(argv: Sequence[str]) -> int:
    # Only now: a client's installation has this file, but not what the command imports.
    from pruning_server.token_command import run_token_command  # noqa: PLC0415

    return run_token_command(argv, os.environ)


def missing_packages() -> list[str]:
    """Returns which packages of the extra `[server]` are not installed."""
    return [name for name in SERVER_PACKAGES if find_spec(name) is None]


def _complain(message: str) -> int:
    print(f"pruning-server: {message}", file=sys.stderr)
    return 2


def _serve(settings: Settings) -> int:
    # Only now: a client's installation has this file, but not what the server imports.
    from pruning_server.adapters.allocator import bound_arenas  # noqa: PLC0415
    from pruning_server.wiring import Server  # noqa: PLC0415

    bound_arenas()  # before there are threads
    logging.basicConfig(stream=sys.stderr, level=settings.log_level, format=LOG_FORMAT)
    wait_for_stop = _stop_signals()
    server = Server(settings)
    server.start()
    addresses = server.addresses
    print(json.dumps({"address": addresses.address, "metrics_address": addresses.metrics_address}), flush=True)
    wait_for_stop()
    log = logging.getLogger("pruning_server")
    log.info("stopping: no new jobs; running ones may go on for %g s", settings.drain_timeout_seconds)
    if not server.stop():
        log.warning("some calls did not end; leaving them")
        logging.shutdown()
        # A thread that is stuck would keep the interpreter from ending. What is stored is safe at any moment.
        os._exit(0)
    log.info("stopped")
    return 0


def _stop_signals() -> Callable[[], None]:
    """Returns what waits for SIGTERM or SIGINT; the second of them ends the process at once.

    It waits for a byte that Python writes the moment a signal comes, in whichever thread. A lock would not do: the main
    thread can miss a signal that another thread gets, or that comes just before it sleeps, and a handler that sets an
    event stands still if it interrupts the wait for it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    stopping = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os._exit(FORCED_EXIT_CODE)
        stopping = True

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)

    def wait() -> None:
        os.read(reader, 1)

    return wait


if __name__ == "__main__":
    sys.exit(main())
