"""The server process: starts fast and small, tells where it listens, and ends as it is told."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import pruning_server
from helpers import sandboxing
from helpers.certificates import self_signed
from helpers.processes import wait_until
from helpers.running_server import RunningServer
from pruning_api.v1 import pruning_job_service_pb2, pruning_job_service_pb2_grpc
from pruning_server.__main__ import SERVER_PACKAGES, main, missing_packages
from pruning_server.sandbox.policy import Policy, to_text

ROOT = Path(__file__).parents[1]
MAX_IDLE_RSS_BYTES = 80 * 10**6
MAX_READY_SECONDS = 1.5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    with RunningServer(tmp_path / "data") as server:
        yield server


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pruning_server.__version__ == project["version"]


def test_it_serves_and_stops(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert stub.Check(health_pb2.HealthCheckRequest(service="pruning_api.v1.ArtifactService"), timeout=10)
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as response:
        metrics = response.read().decode()
    assert 'pruning_jobs{state="queued"} 0.0' in metrics
    assert 'grpc_method="Check"' in metrics
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


def test_it_is_ready_soon_and_small(tmp_path: Path) -> None:
    """The best of three: other processes share the machine."""
    seconds = []
    for index in range(3):
        started = time.monotonic()
        with RunningServer(tmp_path / f"data-{index}") as server:
            seconds.append(time.monotonic() - started)
            assert server.rss_bytes() < MAX_IDLE_RSS_BYTES
    assert min(seconds) < MAX_READY_SECONDS


def test_the_server_process_imports_nothing_heavy() -> None:
    script = (
        "import sys, pruning_server.wiring, pruning_server.__main__\n"
        "print([n for n in ('torch', 'numpy', 'rich', 'multiprocessing.pool', 'pruning_client') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(number: signal.Signals, server: RunningServer) -> None:
    assert server.process is not None
    assert server.process.stdout is not None
    with server.process.stdout as stdout:
        server.process.send_signal(number)
        assert server.process.wait(timeout=30) == 0
        assert stdout.read() == b""


def test_a_signal_that_any_thread_gets_stops_it(server: RunningServer) -> None:
    """The kernel picks the thread, and the one that waits for signals may be about to fall asleep just then."""
    other = next(int(task.name) for task in Path(f"/proc/{server.pid}/task").iterdir() if int(task.name) != server.pid)
    assert server.process is not None
    assert server.process.stdout is not None
    with server.process.stdout:
        assert ctypes.CDLL(None).tgkill(server.pid, other, signal.SIGTERM) == 0
        assert server.process.wait(timeout=30) == 0


def test_a_watch_ends_when_the_server_does(server: RunningServer) -> None:
    """And so does the server: no call keeps it from ending."""
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert server.stop() == 0
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_one_server_per_data_folder(server: RunningServer) -> None:
    code, error = refused("--data-dir", str(server.data_dir))
    assert code == 2
    assert "another server uses the data folder" in error
    server.kill()
    with RunningServer(server.data_dir):
        pass


def test_a_taken_address(server: RunningServer, tmp_path: Path) -> None:
    for flag, address in (("--address", server.address), ("--metrics-address", server.metrics_address)):
        code, error = refused("--data-dir", str(tmp_path / "other"), flag, address)
        assert code == 2
        assert f"cannot listen on {address}" in error
    with RunningServer(tmp_path / "other"):
        pass


def refused(*flags: str) -> tuple[int, str]:
    """Starts a server that does not start; returns its exit code and what it wrote to stderr."""
    defaults = ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    ended = subprocess.run(
        [sys.executable, "-m", "pruning_server", *defaults, *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--cpu-slots", "0"], "--cpu-slots"),
        (["--address", "0.0.0.0:0"], "TLS"),
        (["--tls-cert", "/etc/hostname"], "--tls-key"),
        (["--tls-cert", "/etc/hostname", "--tls-key", "/etc/hostname"], "PEM"),
    ],
)
def test_bad_settings_end_it_with_2(flags: list[str], word: str, tmp_path: Path) -> None:
    code, error = refused("--data-dir", str(tmp_path / "data"), *flags)
    assert code == 2
    assert word in error


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, error = refused("--data-dir", str(tmp_path / "file" / "data"))
    assert code == 2
    assert "--data-dir" in error


def test_a_database_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(b"not a database" * 100)
    code, error = refused("--data-dir", str(tmp_path))
    assert code == 2
    assert "jobs.sqlite3" in error


@pytest.mark.parametrize("name", ["jobs.sqlite3", "artifacts", "artifacts/blobs"])
def test_a_data_folder_with_something_else_in_a_place_of_ours(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    if name == "jobs.sqlite3":
        place.mkdir()
    else:
        place.touch()
    code, error = refused("--data-dir", str(tmp_path))
    assert code == 2
    assert str(place) in error
    assert "--data-dir" in error


def test_a_database_whose_damage_shows_only_when_it_is_read(tmp_path: Path) -> None:
    with RunningServer(tmp_path):
        pass
    database = tmp_path / "jobs.sqlite3"
    connection = sqlite3.connect(database)
    [page_bytes] = connection.execute("PRAGMA page_size").fetchone()
    [page] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_by_state'").fetchone()
    connection.close()
    with database.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    code, error = refused("--data-dir", str(tmp_path))
    assert code == 2
    assert "damaged" in error


def test_tls(tmp_path: Path) -> None:
    pair, other = self_signed(tmp_path, "server"), self_signed(tmp_path, "other")
    code, error = refused(
        "--data-dir", str(tmp_path / "x"), "--tls-cert", str(pair.certificate), "--tls-key", str(other.key)
    )
    assert (code, "its key" in error) == (2, True)
    with RunningServer(tmp_path / "data", "--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)) as server:
        credentials = grpc.ssl_channel_credentials(pair.certificate.read_bytes())
        with grpc.secure_channel(server.address, credentials) as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


def test_without_its_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert missing_packages() == []
    real = importlib.util.find_spec
    for name in SERVER_PACKAGES:
        monkeypatch.setattr(
            "pruning_server.__main__.find_spec", lambda asked, lacks=name: None if asked == lacks else real(asked)
        )
        assert main(["--data-dir", str(tmp_path / "data")]) == 2
        error = capsys.readouterr().err
        assert name in error
        assert "pip install 'pruning-service[server]'" in error


def test_a_client_installation_can_say_that() -> None:
    """What is imported before the check must be in the base installation."""
    script = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {SERVER_PACKAGES!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "from pruning_server.__main__ import main\n"
        "import pruning_server.__main__ as m\n"
        "m.find_spec = lambda name: None\n"
        "sys.exit(main([]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "pip install 'pruning-service[server]'" in ended.stderr


def test_the_missing_sandbox_is_said(tmp_path: Path) -> None:
    environment = {**os.environ, "PRUNING_DATA_DIR": str(tmp_path / "data")}
    command = [sys.executable, "-m", "pruning_server", "--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    for flags, said in ((sandboxing.flags(), not sandboxing.is_given()), (("--insecure-no-sandbox",), True)):
        process = subprocess.Popen(
            [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        process.terminate()
        _, error = process.communicate(timeout=30)
        assert process.returncode == 0
        assert ("trust" in error) == said


def test_a_machine_that_cannot_contain_workers_is_refused(tmp_path: Path) -> None:
    """Started inside the sandbox, as on a kernel that has none: the server says which part is lacking, and how to go on."""
    sandboxing.needs_sandbox()
    data = tmp_path / "data"
    policy = to_text(Policy(write=(str(tmp_path),), read=("/",)))
    command = [sys.executable, "-P", "-s", "-m", "pruning_server.sandbox", policy, "-m", "pruning_server"]
    ended = subprocess.run(
        [*command, "--data-dir", str(data), "--address", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "cannot be contained" in ended.stderr
    assert "--insecure-no-sandbox" in ended.stderr


def test_the_devices_are_known_soon(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = pruning_job_service_pb2_grpc.PruningJobServiceStub(channel)
        info = stub.GetServerInfo(pruning_job_service_pb2.GetServerInfoRequest(), timeout=60)
    assert info.torch_version
    assert info.sandboxed == sandboxing.is_given()
    assert "cpu" in {device.name for device in info.devices}

    def is_ready() -> bool:
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as response:
            return "pruning_ready 1.0" in response.read().decode()

    wait_until(is_ready, what="pruning_ready")
