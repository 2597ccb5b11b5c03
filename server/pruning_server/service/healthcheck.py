"""`python -m pruning_server.service.healthcheck`: asks a server whether it serves; for containers and scripts.

Exit code 0: SERVING. 1: anything else, and one line that says what.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - to be called, not listened on


@dataclass(frozen=True)
class Tls:
    """The server's own PEM files: its certificate is trusted as it is, and shown where the server asks for one."""

    certificate: Path
    key: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Asks once and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pruning_server.service.healthcheck", description="Asks a server whether it serves."
    )
    parser.add_argument("--address", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--service", default="", help="a service by its full name; empty: the server as a whole")
    parser.add_argument("--timeout", type=float, default=4.0, metavar="SECONDS")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's own certificate")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the server's own key")
    options = parser.parse_args(argv)
    if (options.tls_cert is None) != (options.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    tls = Tls(options.tls_cert, options.tls_key) if options.tls_cert else None
    try:
        status = serving_status(options.address, options.service, options.timeout, tls)
    except grpc.RpcError as error:
        status = f"{error.code().name} {error.details()}"
    except (OSError, ValueError) as error:
        status = str(error)
    sys.stdout.write(f"{status}\n")
    return 0 if status == "SERVING" else 1


def serving_status(address: str, service: str, timeout_seconds: float, tls: Tls | None = None) -> str:
    """Returns the name of the health status of `service` (empty: of the server).

    Raises:
        grpc.RpcError: the server cannot be reached, or knows no such service.
        OSError, ValueError: the files or the address cannot be used.
    """
    target = reachable(address)
    with _channel(target, timeout_seconds, tls) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_seconds)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def reachable(address: str) -> str:
    """The address to call for one that a server listens on: a wildcard becomes loopback."""
    host, _, port = address.rpartition(":")
    return f"{_LOOPBACK_OF.get(host, host)}:{port}"


def _channel(target: str, timeout_seconds: float, tls: Tls | None) -> grpc.Channel:
    # A probe must reach this very server, so no proxy of the environment.
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    certificate, key = tls.certificate.read_bytes(), tls.key.read_bytes()
    options.append(("grpc.ssl_target_name_override", _certified_name(target, timeout_seconds, tls)))
    credentials = grpc.ssl_channel_credentials(certificate, key, certificate)
    return grpc.secure_channel(target, credentials, options=options)


def _certified_name(target: str, timeout_seconds: float, tls: Tls) -> str:
    """A name that the server's certificate is for: a probe calls it by its loopback address, which hardly ever is one."""
    context = ssl.create_default_context(cafile=str(tls.certificate))
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2"])
    context.check_hostname = False
    # The certificate may have been signed by an authority that this probe does not know; it is trusted by itself.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    host, _, port = target.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_seconds) as connection,
        context.wrap_socket(connection) as wrapped,
    ):
        certificate = wrapped.getpeercert() or {}
    names = [str(entry[1]) for entry in certificate.get("subjectAltName", ())]
    if not names:
        raise ValueError(f"{tls.certificate} names no host (no subjectAltName)")
    return names[0].replace("*", "any")


if __name__ == "__main__":
    sys.exit(main())
