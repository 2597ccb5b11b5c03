"""The gate's process: answers, refusals, deaths and deadlines are all typed, and none costs the server anything."""

from __future__ import annotations

import json
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.models import mlp, save_scripted, table_data
from helpers.processes import command_lines, wait_until
from pruning_server.adapters.clock import SystemClock
from pruning_server.adapters.gate import GateProcess
from pruning_server.adapters.process import python_command
from pruning_server.archive.answer import GateAnswer, Refusal
from pruning_server.errors import CapacityError, InvalidArtifactError, JobFailureError, Reason, UnavailableError
from pruning_server.spec.artifacts import ArtifactKind, DatasetSummary, ModelSummary
from pruning_server.spec.base import to_json

SUMMARY = ModelSummary(format_version=6, root="m", methods=("forward",), tensor_bytes=1, code_bytes=2, size_bytes=3)
MODEL = ArtifactKind.TORCHSCRIPT


def gate(script: str, **options: float) -> GateProcess:
    """A gate whose child runs `script`; its arguments are those of `python -m pruning_server.archive`."""
    command = python_command("-c", textwrap.dedent(script))
    return GateProcess(clock=SystemClock(), command=command, **options)  # type: ignore[arg-type]


def answering(answer: GateAnswer) -> str:
    return f"print({to_json(answer).decode()!r})"


def test_a_summary_comes_back_as_the_value_it_was() -> None:
    assert gate(answering(GateAnswer(summary=SUMMARY))).check(MODEL, Path("x")) == SUMMARY


def test_the_child_gets_the_command_line_that_the_contract_names(tmp_path: Path) -> None:
    script = f"""
        import json, sys
        open({str(tmp_path / "argv")!r}, 'w').write(json.dumps(sys.argv[1:]))
        {answering(GateAnswer(summary=SUMMARY))}
    """
    gate(script, memory_bytes=2**29).repack(ArtifactKind.LOSS, Path("/a/b"), Path("/c/d"))
    argv = json.loads((tmp_path / "argv").read_text())
    assert argv == ["repack", "--kind", "loss", "--memory-bytes", str(2**29), "/a/b", "/c/d"]


def test_a_refusal_keeps_its_reason_message_and_metadata() -> None:
    refusal = Refusal(reason=Reason.MODEL_IS_CHECKPOINT, message="use torch.jit.script", metadata={"a": "b"})
    with pytest.raises(InvalidArtifactError, match=r"use torch\.jit\.script") as caught:
        gate(answering(GateAnswer(refusal=refusal))).check(MODEL, Path("x"))
    assert caught.value.reason is Reason.MODEL_IS_CHECKPOINT
    assert caught.value.metadata == {"a": "b"}


@pytest.mark.parametrize(
    "script",
    [
        "import ctypes; ctypes.string_at(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "raise SystemExit(3)",
        "raise ValueError",
        "bytearray(1 << 50)",
        "print('no json')",
        "print('{}')",
        "pass",
        "import sys\nfor _ in range(300): sys.stdout.write('x' * 65536)",
    ],
)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [(MODEL, Reason.MODEL_CORRUPT), (ArtifactKind.DATASET, Reason.DATASET_UNREADABLE)],
)
def test_a_death_is_a_refusal_of_the_file(script: str, kind: ArtifactKind, reason: Reason) -> None:
    with pytest.raises(InvalidArtifactError, match="save it again") as caught:
        gate(script).check(kind, Path("x"))
    assert caught.value.reason is reason


def test_a_full_disk_is_not_blamed_on_the_file() -> None:
    with pytest.raises(CapacityError) as caught:
        gate("raise OSError(28, 'No space left on device')").repack(MODEL, Path("x"), Path("y"))
    assert caught.value.reason is Reason.STORAGE_FULL


def test_a_broken_installation_is_not_blamed_on_the_file() -> None:
    with pytest.raises(UnavailableError, match="installation is incomplete"):
        gate("import a_module_that_is_not_there").check(MODEL, Path("x"))


def test_a_gate_over_its_deadline_is_killed_and_says_so() -> None:
    mark = "gate-deadline-test"
    slow = gate(f"'{mark}'; import time; time.sleep(600)", deadline_seconds=0.3)
    started = time.monotonic()
    with pytest.raises(InvalidArtifactError, match=r"longer than 0\.3 s") as caught:
        slow.check(MODEL, Path("x"))
    assert caught.value.reason is Reason.GATE_DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5.0
    assert command_lines(mark) == {}


def test_cancelling_ends_a_repack_at_once() -> None:
    cancelled = threading.Event()
    mark = "gate-cancel-test"
    slow = gate(f"'{mark}'; import time; time.sleep(600)")
    timer = threading.Timer(0.2, cancelled.set)
    timer.start()
    with pytest.raises(JobFailureError) as caught:
        slow.repack(MODEL, Path("x"), Path("y"), cancelled=cancelled)
    timer.join()
    assert caught.value.reason is Reason.CANCELLED
    assert command_lines(mark) == {}


def test_no_more_gates_run_at_a_time_than_allowed(tmp_path: Path) -> None:
    script = f"""
        import os, time, pathlib
        folder = pathlib.Path({str(tmp_path)!r})
        mine = folder / str(os.getpid())
        mine.touch()
        time.sleep(0.1)
        (folder / f'seen-{{os.getpid()}}').write_text(str(len([p for p in folder.iterdir() if p.name.isdigit()])))
        mine.unlink()
        {answering(GateAnswer(summary=SUMMARY))}
    """
    limited = gate(script, concurrency=2)
    threads = [threading.Thread(target=limited.check, args=(MODEL, Path("x"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = [int(path.read_text()) for path in tmp_path.glob("seen-*")]
    assert len(seen) == 6
    assert max(seen) <= 2


def test_a_call_that_finds_every_gate_taken_is_told_to_come_back() -> None:
    busy = gate("import time; time.sleep(600)", concurrency=1, deadline_seconds=1.0)
    entered = threading.Event()
    outcome: list[BaseException] = []

    def hold() -> None:
        entered.set()
        try:
            busy.check(MODEL, Path("x"))
        except InvalidArtifactError as error:
            outcome.append(error)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(5.0)
    wait_until(lambda: busy._slots._value == 0, what="the only slot's lease")
    busy._deadline_seconds = 0.1
    with pytest.raises(CapacityError) as caught:
        busy.check(MODEL, Path("y"))
    holder.join()
    assert caught.value.retry_after_seconds is not None
    assert isinstance(outcome[0], InvalidArtifactError)


def test_a_gate_that_cannot_be_started_is_a_fault_of_the_server() -> None:
    with pytest.raises(UnavailableError, match="cannot start a process"):
        GateProcess(clock=SystemClock(), command=("/nonexistent/python",)).check(MODEL, Path("x"))


def real_gate(**options: float) -> GateProcess:
    return GateProcess(clock=SystemClock(), **options)  # type: ignore[arg-type]


def test_the_real_gate_accepts_a_real_model_and_a_real_dataset(tmp_path: Path) -> None:
    save_scripted(mlp().eval(), tmp_path / "model.pt")
    inputs, targets = table_data(40)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    model = real_gate().repack(MODEL, tmp_path / "model.pt", tmp_path / "copy.pt")
    assert isinstance(model, ModelSummary)
    assert "forward" in model.methods
    x = torch.from_numpy(inputs)
    expected = torch.jit.load(str(tmp_path / "model.pt"))(x)
    assert torch.equal(torch.jit.load(str(tmp_path / "copy.pt"))(x), expected)
    data = real_gate().check(ArtifactKind.DATASET, tmp_path / "data.npz")
    assert isinstance(data, DatasetSummary)
    assert (data.samples, data.inputs[0].shape, data.container) == (40, inputs.shape, "npz")


@pytest.mark.parametrize("kind", [MODEL, ArtifactKind.LOSS, ArtifactKind.DATASET])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x00" * 5000])
def test_the_real_gate_refuses_what_is_no_file_of_its_kind(tmp_path: Path, kind: ArtifactKind, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InvalidArtifactError) as caught:
        real_gate().check(kind, tmp_path / "file")
    assert "gate_exit" not in caught.value.metadata  # refused, not died of
