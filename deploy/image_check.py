"""Builds the image and runs the server in it, on a machine without a container engine. Run by `make image-check`.

buildah builds the Dockerfile as it is. The base image is imitated with debootstrap (Debian's own Python of the same minor
version) under the base image's name, and wheels come through this machine's pip, so neither a registry nor Docker is
needed. The container shares this machine's network and processes (chroot isolation): what is checked is the image, its user, its
entry point, its health check and its shutdown, not an engine's isolation.

Needs root, buildah and debootstrap (Debian: apt-get install buildah debootstrap), and about 6 GB of disk while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
DOCKERFILE = REPO / "Dockerfile"
IMAGE = "localhost/pruning-service:check"
DEBIAN_RELEASE = "bookworm"
DEBIAN_MIRROR = "http://deb.debian.org/debian"
PYTHON_VERSION = "3.11"
READY_SECONDS = 60.0
STOP_SECONDS = 60.0


class CheckFailedError(Exception):
    """The image is not what it should be; the message says how."""


def main() -> int:
    """Runs the whole check and returns the exit code: 0 passed, 1 failed, 2 it cannot run here."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", action="store_true", help="leave the work folder behind")
    options = parser.parse_args()
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        print(
            f"image-check needs root, buildah and debootstrap; missing: {', '.join(missing) or 'root'}", file=sys.stderr
        )
        return 2
    work = Path(tempfile.mkdtemp(prefix="image-check-"))
    buildah = Buildah(work)
    try:
        check(buildah, work)
    except (CheckFailedError, subprocess.SubprocessError) as error:
        print(f"image-check FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            with contextlib.suppress(CheckFailedError):
                buildah("rm", "--all")
            shutil.rmtree(work, ignore_errors=True)
    print("image-check passed")
    return 0


def check(buildah: Buildah, work: Path) -> None:
    """Builds, inspects, runs."""
    with timed("wheels of this machine's pip"):
        wheels = collect_wheels(work)
    with timed("imitated base image"):
        make_base(buildah)
    with timed("build"):
        build(buildah, work, wheels)
    config = inspect(buildah)
    with timed("server in the image"):
        run_server(buildah, config, work)


# --- Building ---------------------------------------------------------------------------------------------------------


class Buildah:
    """Runs buildah on a storage of its own, so that the machine's images are left alone."""

    def __init__(self, work: Path) -> None:
        folders = ["--root", str(work / "storage"), "--runroot", str(work / "runroot")]
        # vfs and chroot: the two that work inside a container, where this mostly runs.
        self._storage = ["--storage-driver", "vfs", *folders]
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *arguments: str, timeout_seconds: float = 600) -> str:
        """Runs a command to its end and returns its stdout."""
        done = subprocess.run(
            ["buildah", *self._storage, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        if done.returncode != 0:
            raise CheckFailedError(f"buildah {' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        return done.stdout.strip()

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """Starts a command that keeps running; stdout is a pipe, stderr goes to `log`."""
        with log.open("wb") as stderr:
            return subprocess.Popen(
                ["buildah", *self._storage, *arguments], env=self._environment, stdout=subprocess.PIPE, stderr=stderr
            )


def collect_wheels(work: Path) -> Path:
    """Downloads what the image installs, however pip is configured here, and returns the folder."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    requirements = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["server"],
    ]
    folder = work / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
    options = ["--only-binary=:all:", "--python-version", PYTHON_VERSION, "--constraint", str(REPO / "constraints.txt")]
    done = subprocess.run([*command, *options, *requirements], text=True, capture_output=True, timeout=900, check=False)
    if done.returncode != 0:
        raise CheckFailedError(f"pip could not get the wheels:\n{done.stderr[-4000:]}")
    if not list(folder.glob("torch-*+cpu-*.whl")):
        raise CheckFailedError(
            "pip found no CPU wheel of torch (torch-X+cpu): configure an index or folder that has it"
        )
    return folder


def make_base(buildah: Buildah) -> None:
    """Puts a small Debian with Python into the storage, under the name that the Dockerfile starts from."""
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    if found is None or not found[1].startswith(f"python:{PYTHON_VERSION}-"):
        raise CheckFailedError(f"the Dockerfile's BASE_IMAGE is not python:{PYTHON_VERSION}-..., which this imitates")
    container = buildah("from", "scratch")
    root = buildah("mount", container)
    packages = "--include=python3,python3-venv,ca-certificates"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", packages, DEBIAN_RELEASE, root, DEBIAN_MIRROR],
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise CheckFailedError(f"debootstrap failed:\n{done.stdout[-2000:]}")
    for path in [*Path(root, "var/cache/apt/archives").glob("*.deb"), *Path(root, "var/lib/apt/lists").glob("*_*")]:
        path.unlink()
    Path(root, "usr/local/bin/python").symlink_to("/usr/bin/python3")
    buildah("umount", container)
    buildah("commit", "--quiet", "--rm", container, found[1])


def build(buildah: Buildah, work: Path, wheels: Path) -> None:
    """Builds the Dockerfile; the wheels are only mounted, so they leave nothing in the image."""
    pip_configuration = work / "pip.conf"
    pip_configuration.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    mounts = ["--volume", f"{wheels}:/wheels:ro", "--volume", f"{pip_configuration}:/etc/pip.conf:ro"]
    # The docker format: the other one has no place for a health check.
    buildah("bud", "--format", "docker", "--pull-never", *mounts, "--tag", IMAGE, str(REPO), timeout_seconds=900)


# --- Looking ----------------------------------------------------------------------------------------------------------


def inspect(buildah: Buildah) -> dict[str, object]:
    """Checks what the image says about itself, and returns its configuration."""
    image = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]
    config: dict[str, object] = image["config"]
    expected = {
        "User": "10001:10001",
        "StopSignal": "SIGTERM",
        "Entrypoint": ["tini", "--", "pruning-server"],
        "ExposedPorts": {"50051/tcp": {}, "9464/tcp": {}},
        "Volumes": {"/data": {}},
    }
    wrong = {key: config.get(key) for key, value in expected.items() if config.get(key) != value}
    if wrong or not config.get("Healthcheck"):
        raise CheckFailedError(f"unexpected configuration: {wrong}, health check {config.get('Healthcheck')}")
    container = buildah("from", "--pull-never", IMAGE)
    root = Path(buildah("mount", container))
    # Mounting leaves empty files and folders where the mounts were; anything in them would be a leak.
    left = [name for name in ("etc/pip.conf", "wheels", "src") if any(p.lstat().st_size for p in files(root / name))]
    cuda = list(root.glob("opt/venv/lib/python*/site-packages/nvidia*"))
    size_bytes = sum(p.lstat().st_size for p in files(root))
    torch_bytes = sum(
        p.lstat().st_size for t in root.glob("opt/venv/lib/python*/site-packages/torch") for p in files(t)
    )
    buildah("rm", container)
    if left or cuda:
        raise CheckFailedError(f"left behind in the image: {left}, CUDA packages: {[p.name for p in cuda]}")
    report(f"image: {size_bytes / 1e6:.0f} MB of files, {torch_bytes / 1e6:.0f} MB of them torch")
    return config


# --- Running ----------------------------------------------------------------------------------------------------------


def run_server(buildah: Buildah, config: dict[str, object], work: Path) -> None:
    """Starts the server by the image's entry point, probes it from both sides, gives it a job, and stops it."""
    container = buildah("from", "--pull-never", IMAGE)
    ports = free_ports(2)
    environment = {"PRUNING_ADDRESS": f"0.0.0.0:{ports[0]}", "PRUNING_METRICS_ADDRESS": f"0.0.0.0:{ports[1]}"}
    options = [option for name, value in environment.items() for option in ("--env", f"{name}={value}")]
    entrypoint = [str(part) for part in as_list(config["Entrypoint"])]
    health = [str(part) for part in as_list(as_dict(config["Healthcheck"])["Test"])][1:]
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
            for pid in [*descendants(server.pid), server.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            server.wait(timeout=30)
    # A health check that cannot fail would be worth nothing.
    try:
        buildah("run", *options, container, "--", *health, timeout_seconds=60)
    except CheckFailedError:
        report("health check without a server: fails, as it should")
    else:
        raise CheckFailedError("the health check passes without a server")


def read_ready_line(server: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    """Returns the server's ready line."""
    if server.stdout is None:
        raise CheckFailedError("the server's stdout is not a pipe")
    line = server.stdout.readline()
    if not line:
        raise CheckFailedError(
            f"the server ended before it was ready, exit code {server.wait(timeout=30)}; see {log.name}"
        )
    ready: dict[str, str] = json.loads(line)
    return ready


def check_user(pid: int) -> None:
    """Every process of the container runs as the image's user, without privileges."""
    inside = [child for child in descendants(pid) if command_of(child).startswith(("tini", "/opt/venv"))]
    if not inside:
        raise CheckFailedError("no process of the container was found")
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
    init = [pid for pid in descendants(server.pid) if command_of(pid).startswith("tini")]
    if len(init) != 1:
        raise CheckFailedError(f"expected one init process, found {len(init)}")
    started = time.monotonic()
    os.kill(init[0], 15)
    try:
        code = server.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CheckFailedError(f"the server still runs {STOP_SECONDS:.0f} s after SIGTERM; see {log.name}") from error
    if code != 0:
        raise CheckFailedError(f"exit code {code} after SIGTERM, expected 0")
    report(f"SIGTERM: exit code 0 after {time.monotonic() - started:.1f} s")


# --- Small things -----------------------------------------------------------------------------------------------------


def as_list(value: object) -> list[object]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise CheckFailedError(f"a list was expected in the image's configuration, not {value!r}")
    return value


def as_dict(value: object) -> dict[str, object]:
    """The value, which must be an object."""
    if not isinstance(value, dict):
        raise CheckFailedError(f"an object was expected in the image's configuration, not {value!r}")
    return value


def files(path: Path) -> Iterator[Path]:
    """The file at `path`, or every file below it; nothing if it does not exist."""
    if path.is_file() and not path.is_symlink():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def descendants(pid: int) -> list[int]:
    """Every process that came from `pid`, nearest first."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found = [pid]
    for process in found:
        found.extend(children.get(process, []))
    return found[1:]


def command_of(pid: int) -> str:
    """The command line, spaces between the arguments; empty if the process is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on right now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Reports how long a step took."""
    started = time.monotonic()
    yield
    report(f"{what}: {time.monotonic() - started:.1f} s")


def report(line: str) -> None:
    """One line of the summary."""
    print(f"image-check: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
