from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from helpers.certificates import self_signed
from pruning_server.service.healthcheck import main, reachable

SERVICE = "pruning_api.v1.PruningJobService"


class HealthServer:
    """A grpc server that has nothing but the health service."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.servicer = health.HealthServicer()
        self.set_status("SERVING")
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._server)
        listen = "127.0.0.1:0"
        if credentials is None:
            self.port = self._server.add_insecure_port(listen)
        else:
            self.port = self._server.add_secure_port(listen, credentials)
        self._server.start()

    def set_status(self, status: str) -> None:
        for service in ("", SERVICE):
            self.servicer.set(service, health_pb2.HealthCheckResponse.ServingStatus.Value(status))

    def stop(self) -> None:
        self._server.stop(None).wait(timeout=10)


@pytest.fixture
def server() -> Iterator[HealthServer]:
    running = HealthServer()
    yield running
    running.stop()


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_serving_server_passes(server: HealthServer, service: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--address", f"127.0.0.1:{server.port}", "--service", service]) == 0
    assert capsys.readouterr().out == "SERVING\n"


def test_the_address_that_a_server_listens_on_can_be_given(server: HealthServer) -> None:
    assert main(["--address", f"0.0.0.0:{server.port}"]) == 0
    assert reachable("[::]:50051") == "[::1]:50051"
    assert reachable("10.1.2.3:50051") == "10.1.2.3:50051"
    assert reachable("unix:/run/pruning.sock") == "unix:/run/pruning.sock"


def test_a_draining_server_fails(server: HealthServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.set_status("NOT_SERVING")
    assert main(["--address", f"127.0.0.1:{server.port}"]) == 1
    assert capsys.readouterr().out == "NOT_SERVING\n"


def test_an_unknown_service_fails_and_says_so(server: HealthServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--address", f"127.0.0.1:{server.port}", "--service", "nothing"]) == 1
    assert "NOT_FOUND" in capsys.readouterr().out


def test_no_server_fails_within_the_timeout(server: HealthServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.stop()
    assert main(["--address", f"127.0.0.1:{server.port}", "--timeout", "2"]) == 1
    assert capsys.readouterr().out.strip() not in {"", "SERVING"}


def test_a_proxy_of_the_environment_is_not_asked(server: HealthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert main(["--address", f"127.0.0.1:{server.port}"]) == 0


def test_it_runs_as_a_command_without_torch(server: HealthServer) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pruning_server.service.healthcheck import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "--address", f"127.0.0.1:{server.port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "SERVING\n"), done.stderr


def make_certificates(folder: Path) -> None:
    """ca.pem, and cert.pem with key.pem that it signed for pruning.example, by the openssl command."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, timeout=60, check=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority")
    openssl("req", *key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=server")
    (folder / "names").write_text("subjectAltName=DNS:pruning.example")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "request.pem", *signing, "-out", "cert.pem")


@pytest.mark.parametrize("client_certificate_required", [False, True])
def test_with_tls_the_servers_own_files_are_enough(tmp_path: Path, client_certificate_required: bool) -> None:
    make_certificates(tmp_path)
    certificate, key, authority = ((tmp_path / name).read_bytes() for name in ("cert.pem", "key.pem", "ca.pem"))
    roots = authority if client_certificate_required else None
    server = HealthServer(grpc.ssl_server_credentials([(key, certificate)], roots, client_certificate_required))
    try:
        files = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
        assert main(["--address", f"127.0.0.1:{server.port}", *files]) == 0
        assert main(["--address", f"127.0.0.1:{server.port}", "--timeout", "2"]) == 1
    finally:
        server.stop()


def test_a_certificate_that_signs_itself_is_enough(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "server")
    credentials = grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.certificate.read_bytes())])
    server = HealthServer(credentials)
    try:
        files = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
        assert main(["--address", f"127.0.0.1:{server.port}", *files]) == 0
    finally:
        server.stop()


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--tls-key", "key.pem"])
    assert exit_.value.code == 2
