"""The server's PEM files, which may be replaced while it runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from pruning_server.adapters.watched_file import WatchedFiles
from pruning_server.errors import InvalidRequestError
from pruning_server.jobs.access import TlsFiles
from pruning_server.jobs.ports import Clock


def watch_tls(certificate: Path, key: Path, client_ca: Path | None, clock: Clock) -> WatchedFiles[TlsFiles]:
    """Returns the contents of the files, read again when they change and fit together.

    Raises:
        InvalidRequestError: they cannot be read, are no PEM files, or key and certificate do not belong together.
    """
    paths = [path for path in (certificate, key, client_ca) if path is not None]
    return WatchedFiles(paths, lambda: read_tls(certificate, key, client_ca), clock)


def read_tls(certificate: Path, key: Path, client_ca: Path | None) -> TlsFiles:
    """Returns the contents of the files; raises as `watch_tls`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # grpc itself only logs that something is wrong, and then refuses every client.
        context.load_cert_chain(certificate, key, password=_no_password)
        contents = certificate.read_bytes(), key.read_bytes()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidRequestError.for_field(
            "--tls-cert",
            f"{certificate} and {key} are not a PEM certificate and its key, without a password ({error})",
        ) from error
    return TlsFiles(*contents, client_ca=None if client_ca is None else _read_client_ca(context, client_ca))


def _no_password() -> str:
    """Instead of asking on the terminal."""
    return ""


def _read_client_ca(context: ssl.SSLContext, path: Path) -> bytes:
    try:
        context.load_verify_locations(path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidRequestError.for_field("--tls-client-ca", f"{path} holds no PEM certificates ({error})") from error
