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
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from image_run import run_server
from image_tools import Buildah, CheckFailedError, files, report, timed

REPO = Path(__file__).resolve().parent.parent
DOCKERFILE = REPO / "Dockerfile"
IMAGE = "localhost/pruning-service:check"
DEBIAN_RELEASE = "bookworm"
DEBIAN_MIRROR = "http://deb.debian.org/debian"
PYTHON_VERSION = "3.11"


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
        run_server(buildah, IMAGE, config, work)


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


def inspect(buildah: Buildah) -> dict[str, object]:
    """Checks what the image says about itself, and returns its configuration."""
    image = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]
    config: dict[str, object] = image["config"]
    expected = {
        "User": "10001:10001",
        "StopSignal": "SIGTERM",
        "Entrypoint": ["tini", "-s", "--", "pruning-server"],
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


if __name__ == "__main__":
    sys.exit(main())
