"""A real Prometheus on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

START_SECONDS = 30.0
POLL_SECONDS = 0.1

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"
)


class PrometheusServer:
    """Scrapes `targets` (job name to address) every second; a context manager that stops it."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        self._folder = folder
        self._address = ""
        self._process: subprocess.Popen[bytes] | None = None
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()
            ],
        }
        self._config = folder / "prometheus.yml"
        self._config.write_text(yaml.safe_dump(config))

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query; AssertionError if Prometheus refuses it."""
        parameters = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"http://{self._address}/api/v1/query?{parameters}", timeout=10) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        return result

    def wait_for(self, expression: str, seconds: float = 20.0) -> list[dict[str, Any]]:
        """Queries until there is a result."""
        deadline = time.monotonic() + seconds
        while not (result := self.query(expression)):
            assert time.monotonic() < deadline, f"no data for {expression}"
            time.sleep(POLL_SECONDS)
        return result

    def __enter__(self) -> Self:
        for _ in range(3):  # another process may take the free port before Prometheus does
            if self._start():
                return self
        raise AssertionError(f"prometheus did not start:\n{(self._folder / 'prometheus.log').read_text()}")

    def _start(self) -> bool:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus", f"--config.file={self._config}", f"--web.listen-address={self._address}",
                    f"--storage.tsdb.path={self._folder / 'tsdb'}", "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
                    return True
            except (ConnectionError, urllib.error.URLError):
                time.sleep(POLL_SECONDS)
        self._stop()
        return False

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
