"""Control groups of runs: taken only where they were given, and gone with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.job_world import World
from pruning_server.adapters.cgroups import SLACK_BYTES, Cgroups, RunGroup, delegated

UNIFIED = next((path for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")) if (path / "cgroup.procs").is_file()), None)  # fmt: skip


def hierarchy(root: Path, *, pids: list[int], controllers: str = "cpu memory pids") -> tuple[Path, Path]:
    """Files as the kernel shows them for a group `/own`; returns the mount and /proc."""
    own = root / "cgroup" / "own"
    own.mkdir(parents=True)
    (own / "cgroup.procs").write_text("\n".join(map(str, pids)))
    (own / "cgroup.controllers").write_text(controllers)
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text("3:cpu:/else\n0::/own\n")
    # A folder of ordinary files makes no file in a new group, so the server's is laid out beforehand.
    (own / "pruning-server").mkdir()
    return root / "cgroup", root / "proc"


def test_a_group_of_our_own_is_taken_over(tmp_path: Path) -> None:
    mount, proc = hierarchy(tmp_path, pids=[1, os.getpid()])
    found = delegated(mount, proc)
    assert found is not None
    assert (mount / "own/pruning-server/cgroup.procs").read_text() == str(os.getpid())
    assert (mount / "own/cgroup.subtree_control").read_text() == "+memory +pids"
    group = found.make(1 << 30)
    assert group is not None
    group.add(77)
    assert (group.path / "memory.max").read_text() == str((1 << 30) + SLACK_BYTES)
    assert (group.path / "memory.oom.group").read_text() == "1"
    assert (group.path / "pids.max").read_text() == "1024"
    assert (group.path / "cgroup.procs").read_text() == "77"


@pytest.mark.parametrize("case", ["others inside", "no controllers", "version 1", "read-only"])
def test_what_was_not_given_is_left_alone(tmp_path: Path, case: str) -> None:
    others = [os.getppid()] if case == "others inside" else []
    mount, proc = hierarchy(
        tmp_path, pids=[os.getpid(), *others], controllers="cpu" if case == "no controllers" else "memory pids"
    )
    if case == "version 1":
        (proc / "self" / "cgroup").write_text("3:cpu:/own\n")
    if case == "read-only":
        (mount / "own/pruning-server").rmdir()
        (mount / "own/pruning-server").write_text("")
    assert delegated(mount, proc) is None
    assert not (mount / "own/cgroup.subtree_control").exists()


@pytest.fixture
def real() -> Iterator[Path]:
    """A group of its own in the machine's hierarchy, where this user may make one."""
    if UNIFIED is None:
        pytest.skip("no cgroup v2 here")
    path = UNIFIED / f"pruning-test-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made here ({error})")
    yield path
    path.rmdir()


def test_closing_ends_what_is_inside_and_removes_the_group(real: Path) -> None:
    (real / "run").mkdir()
    group = RunGroup(real / "run")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        group.add(child.pid)
        assert str(child.pid) in (group.path / "cgroup.procs").read_text().split()
        (group.path / "cgroup.kill").write_text("1")
        assert child.wait(timeout=20) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
    group.close()
    assert not group.path.exists()


def test_a_kernel_that_refuses_the_limits_costs_nothing(real: Path) -> None:
    """Without controllers there are no files to write them to: the run goes on without a group."""
    if (real / "memory.max").exists():
        pytest.skip("this hierarchy has the controllers")
    assert Cgroups(real).make(1 << 30) is None
    assert [path for path in real.iterdir() if path.is_dir()] == []


def test_a_run_without_groups_ends_as_ever(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    try:
        outcome, _ = world.run(world.claimed())
        assert outcome.exit_cause == "ok"
    finally:
        world.close()
