"""The gate as a process: one line of JSON, its limits, and its end with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers.archives import frozen, npz, repacked, scripted, sparse
from pruning_server.archive.answer import GateAnswer
from pruning_server.archive.dataset import open_dataset
from pruning_server.errors import Reason
from pruning_server.spec.artifacts import DatasetSummary, ModelSummary
from pruning_server.spec.base import from_json

COMMAND = [sys.executable, "-P", "-s", "-m", "pruning_server.archive"]
GIB = 1 << 30


def gate(*arguments: object, expect: int = 0) -> GateAnswer:
    """Runs the command and reads its answer."""
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, timeout=60, env=environment, cwd="/", check=False
    )
    assert done.returncode == expect, done.stderr
    if expect:
        return GateAnswer()
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    answer = from_json(done.stdout, GateAnswer)
    assert (answer.summary is None) != (answer.refusal is None)
    return answer


def test_a_model_is_checked_and_repacked(tmp_path: Path) -> None:
    source, destination = tmp_path / "model.pt", tmp_path / "copy.pt"
    source.write_bytes(scripted())
    checked = gate("check", "--kind", "torchscript", "--memory-bytes", GIB, source).summary
    assert isinstance(checked, ModelSummary)
    written = gate("repack", "--kind", "torchscript", "--memory-bytes", GIB, source, destination).summary
    assert isinstance(written, ModelSummary)
    assert destination.read_bytes() == repacked(scripted())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.pt", "model.pt"]
    assert (checked.methods, checked.size_bytes) == (written.methods, len(scripted()))


def test_a_loss_is_a_model(tmp_path: Path) -> None:
    class Squared(nn.Module):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            """Returns a scalar."""
            return (output - target).square().mean()

    torch.jit.script(Squared()).save(str(tmp_path / "loss.pt"))
    summary = gate("check", "--kind", "loss", tmp_path / "loss.pt").summary
    assert isinstance(summary, ModelSummary)
    assert summary.tensor_bytes == 0


def test_compression_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(sparse())
    gate("repack", "--kind", "torchscript", "--compress", tmp_path / "model.pt", tmp_path / "small.pt")
    gate("repack", "--kind", "torchscript", tmp_path / "model.pt", tmp_path / "large.pt")
    assert (tmp_path / "small.pt").stat().st_size < 0.6 * (tmp_path / "large.pt").stat().st_size


def test_a_dataset_is_checked_and_repacked(tmp_path: Path) -> None:
    source, destination = tmp_path / "data.npz", tmp_path / "copy.npz"
    inputs = np.asfortranarray(np.random.default_rng(0).normal(size=(40, 6)))
    source.write_bytes(npz(inputs=inputs))
    assert isinstance(gate("check", "--kind", "dataset", source).summary, DatasetSummary)
    gate("repack", "--kind", "dataset", "--memory-bytes", GIB, source, destination)
    np.testing.assert_array_equal(open_dataset(destination).inputs[0], inputs)


@pytest.mark.parametrize("kind", ["torchscript", "loss", "dataset"])
def test_a_refusal_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"neither this nor that" if kind != "dataset" else npz(inputs=np.array([1.0, np.nan])))
    refusal = gate("repack", "--kind", kind, source, tmp_path / "copy").refusal
    assert refusal is not None
    assert refusal.reason in {Reason.MODEL_NOT_A_ZIP, Reason.DATASET_NOT_FINITE}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_old_copy_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    source, destination = tmp_path / "model.pt", tmp_path / "copy.pt"
    source.write_bytes(frozen()[:-10])
    destination.write_bytes(b"old")
    assert gate("repack", "--kind", "torchscript", source, destination).refusal is not None
    assert destination.read_bytes() == b"old"


@pytest.mark.parametrize(
    "arguments", [["check"], ["check", "--kind", "report", "x"], ["repack", "--kind", "dataset", "x"], ["other"]]
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    gate(*arguments, expect=2)


def test_a_missing_file_is_a_death_with_its_cause(tmp_path: Path) -> None:
    gate("check", "--kind", "torchscript", tmp_path / "none.pt", expect=1)


def test_memory_is_limited_and_its_lack_is_a_refusal(tmp_path: Path) -> None:
    source = tmp_path / "data.npz"
    # Compressed and in Fortran order: the one case that takes an array, here 128 MB, into memory.
    source.write_bytes(npz(compressed=True, inputs=np.ones((400_000, 40), order="F")))
    roomy = gate("repack", "--kind", "dataset", "--memory-bytes", GIB, source, tmp_path / "copy.npz")
    assert roomy.summary is not None
    tight = gate("repack", "--kind", "dataset", "--memory-bytes", 150_000_000, source, tmp_path / "other.npz")
    assert tight.refusal is not None
    assert "memory" in tight.refusal.message
    assert not (tmp_path / "other.npz").exists()


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """The child opens a pipe that nobody writes to, so that it would wait for ever."""
    fifo, pid_file = tmp_path / "model.pt", tmp_path / "pid"
    os.mkfifo(fifo)
    script = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([*{COMMAND!r}, 'check', '--kind', 'torchscript', {str(fifo)!r}],"
        " env={'PRUNING_PARENT_PID': str(os.getpid()), 'PATH': os.environ['PATH']})\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid) + '\\n')\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        child = wait_for_pid(pid_file)
        wait_until(lambda: "archive" in Path(f"/proc/{child}/cmdline").read_text() and waits_for(child))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: is_gone(child))


def wait_until(condition, seconds: float = 20.0) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def wait_for_pid(path: Path) -> int:
    """The number in a file, once it is whole."""
    wait_until(lambda: path.is_file() and path.read_text().endswith("\n"))
    return int(path.read_text())


def waits_for(pid: int) -> bool:
    """Whether the process sleeps in the open of the pipe: it has set itself up then."""
    return "fifo" in Path(f"/proc/{pid}/wchan").read_text() or stat_of(pid) == "S"


def stat_of(pid: int) -> str:
    """The state letter of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_gone(pid: int) -> bool:
    """Whether the process is dead; it may linger as a zombie where nobody reaps orphans."""
    try:
        return stat_of(pid) == "Z"
    except FileNotFoundError:
        return True


def test_a_parent_that_is_gone_already_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(scripted())
    done = subprocess.run(
        [*COMMAND, "check", "--kind", "torchscript", str(tmp_path / "model.pt")],
        env={"PRUNING_PARENT_PID": "1", "PATH": os.environ["PATH"]}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""
