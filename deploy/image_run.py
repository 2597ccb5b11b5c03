"""Runs the server in the image: ready, probed from both sides, one job, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from image_tools import Buildah, CheckFailedError, as_dict, as_list, command_of, descendants, inside_container, report

READY_SECONDS = 60.0
STOP_SECONDS = 60.0


def run_server(buildah: Buildah, image: str, config: dict[str, object], work: Path) -> None:
    """Starts the server by the image's entry point, probes it from both sides, gives it a job, and stops it."""
    container = buildah("from", "--pull-never", image)
    ports = free_ports(2)
    environment = {"PRUNING_ADDRESS": f"0.0.0.0:{ports[0]}", "PRUNING_METRICS_ADDRESS": f"0.0.0.0:{ports[1]}"}
    options = [option for name, value in environment.items() for option in ("--env", f"{name}={value}")]
    entrypoint = [str(part) for part in as_list(config["Entrypoint"])]
    health = health_command(config)
    started = time.monotonic()
    log = work / "server.log"
    server = buildah.start("run", *options, container, "--", *entrypoint, "--insecure-no-tls", log=log)
    try:
        ready = read_ready_line(server, log)
        report(f"ready after {time.monotonic() - started:.1f} s on {ready['address']}")
        check_user(server.pid)
        check_outside(ports)
        buildah("run", *options, container, "--", *health, timeout_seconds=60)
        report("health check inside: SERVING")
        prune_a_model(ports[0], work)
        stop(server, log)
    except CheckFailedError as error:
        raise CheckFailedError(f"{error}\n--- the server's log ---\n{log.read_text()[-4000:]}") from error
    finally:
        if server.poll() is None:
            kill_tree(server.pid)
            server.wait(timeout=30)
    # A health check that cannot fail would be worth nothing.
    try:
        buildah("run", *options, container, "--", *health, timeout_seconds=60)
    except CheckFailedError:
        report("health check without a server: fails, as it should")
    else:
        raise CheckFailedError("the health check passes without a server")


def health_command(config: dict[str, object]) -> list[str]:
    """The command that an engine would run for the image's health check."""
    kind, *command = [str(part) for part in as_list(as_dict(config["Healthcheck"])["Test"])]
    return ["sh", "-c", *command] if kind == "CMD-SHELL" else command


def read_ready_line(server: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    """Returns the server's ready line."""
    if server.stdout is None:
        raise CheckFailedError("the server's stdout is not a pipe")
    watchdog = threading.Timer(READY_SECONDS, kill_tree, [server.pid])
    watchdog.start()
    line = server.stdout.readline()
    watchdog.cancel()
    if not line:
        code = server.wait(timeout=30)
        raise CheckFailedError(
            f"the server was not ready within {READY_SECONDS:.0f} s, exit code {code}; see {log.name}"
        )
    ready: dict[str, str] = json.loads(line)
    return ready


def kill_tree(pid: int) -> None:
    """Kills a process and all that came from it."""
    for each in [*descendants(pid), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def check_user(pid: int) -> None:
    """Every process of the container runs as the image's user, without privileges."""
    inside = inside_container(pid)
    if len(inside) < 2:
        raise CheckFailedError(
            f"an init and a server were expected in the container, found {list(map(command_of, inside))}"
        )
    for child in inside:
        status = Path(f"/proc/{child}/status").read_text()
        users = set(re.findall(r"^[UG]id:\s+(.*)$", status, re.MULTILINE)[0].split())
        capabilities = int(re.findall(r"^CapEff:\s+(\w+)$", status, re.MULTILINE)[0], 16)
        if users != {"10001"} or capabilities != 0:
            raise CheckFailedError(f"{command_of(child)} runs as {users} with capabilities {capabilities:x}")
    report(f"{len(inside)} processes, all as user 10001 without capabilities")


def check_outside(ports: list[int]) -> None:
    """The health service answers, the worker's torch is known, and Prometheus would find the metrics."""
    command = [sys.executable, "-m", "pruning_server.service.healthcheck", "--address", f"127.0.0.1:{ports[0]}"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=60, check=False)
    if done.returncode != 0:
        raise CheckFailedError(f"the health check from outside failed: {done.stdout}{done.stderr}")
    with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    if "pruning_jobs" not in text:
        raise CheckFailedError("the metrics endpoint does not serve the metrics")
    report("health check outside: SERVING; metrics served")


def prune_a_model(port: int, work: Path) -> None:
    """One real job, submitted by this checkout's client: torch works in the image's workers."""
    make = """
import numpy, sys, torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()
inputs = torch.randn(200, 8)
torch.jit.save(torch.jit.trace(net, inputs[:2]), "model.pt")
numpy.savez("data.npz", inputs=inputs.numpy(), targets=net(inputs).argmax(1).numpy())
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", make], cwd=work, timeout=120, check=True)
    submit = [sys.executable, "-m", "pruning_client", "submit", "model.pt", "--validation", "data.npz"]
    target = ["--strategy", "static", "--sparsity", "0.5", "--epochs", "1", "-o", "pruned.pt"]
    started = time.monotonic()
    done = subprocess.run(
        [*submit, *target, "--json", "--server", f"127.0.0.1:{port}"],
        cwd=work,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0 or not (work / "pruned.pt").is_file():
        raise CheckFailedError(f"the job failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    report(f"a job through the image: {json.loads(done.stdout)['state']} in {time.monotonic() - started:.1f} s")


def stop(server: subprocess.Popen[bytes], log: Path) -> None:
    """Sends SIGTERM to the init process, as an engine does, and expects exit code 0."""
    inside = inside_container(server.pid)
    init = [pid for pid in inside if Path(command_of(pid).split(" ")[0]).name == "tini"]
    if len(init) != 1:
        raise CheckFailedError(f"expected one init process among {list(map(command_of, inside))}")
    started = time.monotonic()
    os.kill(init[0], signal.SIGTERM)
    try:
        code = server.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CheckFailedError(f"the server still runs {STOP_SECONDS:.0f} s after SIGTERM; see {log.name}") from error
    if code != 0:
        raise CheckFailedError(f"exit code {code} after SIGTERM, expected 0")
    report(f"SIGTERM: exit code 0 after {time.monotonic() - started:.1f} s")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
