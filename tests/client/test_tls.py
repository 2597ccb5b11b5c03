"""The client over TLS: only to a server whose certificate the given CA signed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from helpers.fake_server import FakeServer
from helpers.quick_client import QUICK
from pruning_api.v1 import pruning_job_service_pb2_grpc
from pruning_client import PruningClient, UnavailableError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl for certificates")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    folder.mkdir()
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[str, Path, FakeServer]]:
    """Address, CA and script of a server with TLS."""
    key, certificate = make_certificate(tmp_path / "server")
    fake = FakeServer()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    pruning_job_service_pb2_grpc.add_PruningJobServiceServicer_to_server(fake.jobs, server)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"localhost:{port}", certificate, fake
    server.stop(0).wait()


def test_the_right_ca(secured: tuple[str, Path, FakeServer], tmp_path: Path) -> None:
    address, certificate, fake = secured
    (tmp_path / "token").write_text("secret")
    with PruningClient(address, tls_ca=certificate, token_file=tmp_path / "token", retry_policy=QUICK) as client:
        assert client.server_info().version == "9.9"
    assert fake.script.metadata[0]["authorization"] == "Bearer secret"


def test_another_ca_and_none(secured: tuple[str, Path, FakeServer], tmp_path: Path) -> None:
    address, _, fake = secured
    _, other = make_certificate(tmp_path / "other")
    for certificate in (other, None):
        with (
            PruningClient(address, tls_ca=certificate, retry_policy=QUICK) as client,
            pytest.raises(UnavailableError, match="TLS the same on both sides"),
        ):
            client.server_info()
    assert fake.script.calls == []
