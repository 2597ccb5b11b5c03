"""The worker as the server starts it: its own process, a pipe for messages, limits, and death with its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from helpers import zoo
from helpers.models import fitted, mlp, table_data
from helpers.runs import decode, make_spec, make_workspace, run_process, sparsity
from pruning_server.errors import Reason
from pruning_server.jobs.events import CheckPassed, PhaseStarted, RunFailed, RunSucceeded, WorkerAlive
from pruning_server.jobs.probe import Probe
from pruning_server.jobs.workspace import PRUNED_FILE, REPORT_FILE
from pruning_server.spec.phases import Phase
from pruning_server.worker.hygiene import EXIT_PARENT_GONE

DEADLINE_SECONDS = 60.0


class Chatty(nn.Module):
    """Prints whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print('{"message":"succeeded"}')
        return self.linear(x)


class Hungry(nn.Module):
    """Asks for more memory than there is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + torch.ones([1500000000]).sum()


class Endless(nn.Module):
    """Never returns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = 0
        while bool((x.sum() * 0 == 0).item()):
            count += 1
        return self.linear(x) + count


def workspace(root: Path, model: torch.jit.ScriptModule) -> Path:
    """A small job."""
    inputs, targets = table_data(80)
    return make_workspace(root, model, {"inputs": inputs, "targets": targets}, make_spec(sparsity(0.5)))


def test_run_and_check_say_everything_over_the_pipe(tmp_path: Path) -> None:
    root = workspace(tmp_path / "run", zoo.scripted(Chatty()))
    code, messages, errors = run_process("run", root, "--memory-bytes", str(8 << 30))
    assert code == 0, errors
    assert isinstance(messages[0], WorkerAlive)
    assert messages[0].rss_bytes > 1 << 20
    assert isinstance(messages[-1], RunSucceeded)
    assert sum(isinstance(message, RunSucceeded | RunFailed) for message in messages) == 1
    assert [message.phase for message in messages if isinstance(message, PhaseStarted)] == list(Phase)
    report = json.loads((root / REPORT_FILE).read_bytes())
    assert report["strategy"]["pruned_weights"] == 12
    assert report["provenance"]["threads"] == 1

    code, messages, errors = run_process("check", root)
    assert code == 0, errors
    assert isinstance(messages[-1], CheckPassed), messages[-1]
    assert messages[-1].max_relative_error == 0.0


def test_the_check_finds_what_is_not_the_model(tmp_path: Path) -> None:
    root = workspace(tmp_path / "run", zoo.scripted(fitted(mlp(), *table_data(80), epochs=2)))
    assert run_process("run", root)[0] == 0
    path = root / PRUNED_FILE
    good = path.read_bytes()
    for harm, word in (("bias", "outputs"), ("zero", "should be 0"), ("file", "load")):
        path.write_bytes(good)
        if harm == "file":
            path.write_bytes(good[:1000])
        else:
            module = torch.jit.load(str(path))
            with torch.no_grad():
                parameters = dict(module.named_parameters())
                changed = parameters["3.bias" if harm == "bias" else "0.weight"].view(-1)
                changed[int((changed == 0 if harm == "zero" else changed != 0).nonzero()[0])] += 1e-2
            module.save(str(path))
        code, messages, _ = run_process("check", root)
        assert code == 0
        assert isinstance(messages[-1], RunFailed)
        assert messages[-1].reason is Reason.VERIFICATION_FAILED
        assert word in messages[-1].text


def test_the_probe_names_devices_and_strategies() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pruning_server.worker", "probe"],
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    assert done.stdout.count(b"\n") == 1
    probe = msgspec.json.decode(done.stdout, type=Probe)
    assert probe.torch_version == str(torch.__version__)
    assert probe.devices[0].name == "cpu"
    assert probe.devices[0].memory_bytes > 1 << 28
    static = next(strategy for strategy in probe.strategies if strategy.name == "static")
    assert static.available
    assert {"l1", "l2", "random"} <= {criterion.name for criterion in static.criteria}
    assert {strategy.name for strategy in probe.strategies} == {"static", "dynamic", "conditional"}


def test_too_little_memory_is_named(tmp_path: Path) -> None:
    root = workspace(tmp_path / "run", zoo.scripted(Hungry()))
    code, messages, _ = run_process("run", root, "--memory-bytes", str(2 << 30))
    assert code == 0
    failure = messages[-1]
    assert isinstance(failure, RunFailed)
    assert failure.reason is Reason.WORKER_OUT_OF_MEMORY
    assert failure.phase is Phase.OBSERVE
    assert "memory_bytes" in failure.text


def test_a_broken_job_file_is_a_failure_and_not_a_death(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    code, messages, _ = run_process("run", tmp_path)
    assert code == 0
    assert isinstance(messages[-1], RunFailed)
    assert messages[-1].reason is Reason.WORKER_EXCEPTION
    assert "job.json" in messages[-1].text


def test_bad_flags_are_bad_usage(tmp_path: Path) -> None:
    code, messages, errors = run_process("run", tmp_path, "--no-such-flag")
    assert (code, messages) == (2, [])
    assert "usage" in errors


def start(root: Path, *, detached: bool = False) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a run and returns the process that was started and the reading end of its pipe.

    `detached`: by a parent in between, which is what is returned.
    """
    reader, writer = os.pipe()
    command = [
        sys.executable, "-m", "pruning_server.worker", "run", "--workspace", str(root), "--events-fd", str(writer)
    ]  # fmt: skip
    if detached:
        code = f"import subprocess; subprocess.run({command!r}, pass_fds=[{writer}])"
        command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, pass_fds=[writer], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    os.close(writer)
    return process, reader


def wait_for_phase(reader: int, phase: Phase) -> None:
    """Reads messages until the run is in the phase."""
    seen = b""
    while True:
        block = os.read(reader, 1 << 16)
        assert block, "the worker ended"
        seen += block
        lines = seen.split(b"\n")
        if any(isinstance(message, PhaseStarted) and message.phase is phase for message in decode(lines[:-1])):
            return


def test_it_ends_when_nobody_listens(tmp_path: Path) -> None:
    process, reader = start(workspace(tmp_path / "run", zoo.scripted(Endless())))
    try:
        wait_for_phase(reader, Phase.OBSERVE)
        os.close(reader)
        assert process.wait(timeout=DEADLINE_SECONDS) == EXIT_PARENT_GONE
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    parent, reader = start(workspace(tmp_path / "run", zoo.scripted(Endless())), detached=True)
    try:
        wait_for_phase(reader, Phase.OBSERVE)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # The pipe's end says that its last writer is gone; the reading side stays open, so that it is not what ended it.
        deadline = time.monotonic() + DEADLINE_SECONDS
        while os.read(reader, 1 << 16):
            assert time.monotonic() < deadline, "the worker outlived its parent"
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if parent.poll() is None else None
        os.close(reader)


def test_nothing_of_torch_is_loaded_before_the_process_is_contained() -> None:
    code = "import sys, pruning_server.worker.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=DEADLINE_SECONDS).returncode == 0


def test_two_processes_give_the_same_bytes(tmp_path: Path) -> None:
    model = zoo.traced(fitted(mlp(), *table_data(80), epochs=2), torch.zeros(2, 8))
    contents = []
    for name in ("one", "two"):
        root = workspace(tmp_path / name, model)
        assert run_process("run", root)[0] == 0
        contents.append((root / PRUNED_FILE).read_bytes())
    assert contents[0] == contents[1]
    assert np.frombuffer(contents[0], dtype=np.uint8).size > 1000
