"""Inspections in real processes, over the real gate: each way to end has its error, and none leaves anything behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import sandboxing
from helpers.archives import frozen, saved, scripted, traced
from helpers.job_world import OWNER, World
from helpers.models import mlp
from helpers.processes import command_lines, wait_until
from pruning_server.adapters.executor import WORKER_COMMAND
from pruning_server.adapters.gate import GateProcess
from pruning_server.adapters.inspector import InspectionLimits, LocalInspector
from pruning_server.adapters.process import python_command
from pruning_server.errors import (
    CapacityError,
    InvalidArtifactError,
    InvalidRequestError,
    PreconditionError,
    Reason,
    ServiceError,
    UnavailableError,
)
from pruning_server.jobs.inspection import InspectionService
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.inspection import Inspection, InspectionRequest, TensorSpec
from pruning_server.spec.request import ArtifactRef, ScalarArgument

GIB = 2**30


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


class Hungry(nn.Module):
    """Asks for more memory than it may have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + torch.ones([1500000000]).sum()


class Raising(nn.Module):
    """Takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) > 0:
            raise ValueError("the moon is in the wrong house")
        return self.linear(x)


class Chatty(nn.Module):
    """Prints what looks like an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print('{"inspection":null}')
        return self.linear(x)


class Inspections:
    """An inspector over real parts, and the artifacts for it."""

    def __init__(self, root: Path) -> None:
        self.world = World(root / "data")
        self.root = root / "inspections"

    def inspector(self, command: tuple[str, ...] = WORKER_COMMAND, **limits: object) -> LocalInspector:
        return LocalInspector(
            root=self.root,
            gate=GateProcess(clock=self.world.clock, is_sandboxed=sandboxing.is_given()),
            artifacts=self.world.artifacts,
            clock=self.world.clock,
            limits=InspectionLimits(**({"memory_bytes": 8 * GIB, "deadline_seconds": 60.0} | limits)),  # type: ignore[arg-type]
            command=command,
            is_sandboxed=command is WORKER_COMMAND and sandboxing.is_given(),
        )

    def put(self, content: bytes, kind: ArtifactKind = ArtifactKind.TORCHSCRIPT) -> ArtifactRef:
        path = self.world.folder / "upload"
        path.write_bytes(content)
        return ArtifactRef(artifact_id=self.world.artifacts.put_file(OWNER, kind, path, "file").artifact_id)

    def ask(self, content: bytes, inspector: LocalInspector | None = None, **fields: object) -> Inspection:
        request = InspectionRequest(**({"model": self.put(content)} | fields))  # type: ignore[arg-type]
        try:
            return (inspector or self.inspector()).inspect(OWNER, request, threading.Event())
        finally:
            assert list(self.root.iterdir()) == [], "the folder is still there"


@pytest.fixture
def inspections(tmp_path: Path) -> Iterator[Inspections]:
    found = Inspections(tmp_path)
    yield found
    found.world.close()


def archive(net: nn.Module) -> bytes:
    return saved(torch.jit.script(net.eval()))


@pytest.mark.parametrize(
    ("content", "shape", "channels"),
    [(scripted, (1, 1, 8, 8), [8, 16]), (traced, (2, 8), [32]), (frozen, (1, 1, 8, 8), [8, 16])],
)
def test_archives_of_every_kind(
    inspections: Inspections, content: Callable[[], bytes], shape: tuple[int, ...], channels: list[int]
) -> None:
    found = inspections.ask(content())
    assert found.inputs == (TensorSpec(shape=shape),)
    assert [group.channels for group in found.groups] == channels
    assert any("output" in one.reason for one in found.frozen)


def test_given_inputs_and_samples(inspections: Inspections) -> None:
    found = inspections.ask(scripted(), inputs=(TensorSpec(shape=(4, 1, 8, 8)),))
    assert found.inputs == (TensorSpec(shape=(4, 1, 8, 8)),)
    path = inspections.world.folder / "data.npz"
    np.savez(path, inputs=np.zeros((5, 1, 8, 8), np.uint8))
    samples = inspections.put(path.read_bytes(), ArtifactKind.DATASET)
    by_samples = inspections.ask(scripted(), samples=samples)
    assert by_samples.inputs == (TensorSpec(shape=(2, 1, 8, 8)),)
    assert (by_samples.layers, by_samples.groups) == (found.layers, found.groups)


@pytest.mark.parametrize(
    ("fields", "field", "reason", "words"),
    [
        ({"inputs": (TensorSpec(shape=(2, 7)),)}, "inputs", Reason.MODEL_INPUT_MISMATCH, "2x7:float32"),
        ({"arguments": (ScalarArgument(position=4, value=1),)}, "arguments", Reason.MODEL_INPUT_MISMATCH, "position 4"),
    ],
)
def test_inputs_that_do_not_fit(
    inspections: Inspections, fields: dict[str, object], field: str, reason: Reason, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        inspections.ask(archive(mlp()), **fields)
    assert (caught.value.violations[0].field, caught.value.reason) == (field, reason)


def test_a_model_that_raises_is_quoted(inspections: Inspections) -> None:
    with pytest.raises(InvalidRequestError, match="the moon is in the wrong house") as caught:
        inspections.ask(archive(Raising()))
    assert caught.value.violations[0].field == "inputs"


def test_what_a_model_prints_is_no_answer(inspections: Inspections) -> None:
    assert len(inspections.ask(archive(Chatty())).layers) == 1


@pytest.mark.parametrize("content", [b"no archive", scripted()[:1000]], ids=["text", "half"])
def test_what_the_gate_refuses(inspections: Inspections, content: bytes) -> None:
    with pytest.raises(InvalidArtifactError) as caught:
        inspections.ask(content)
    assert caught.value.violations[0].field == "model"


def test_a_model_that_loops_is_stopped_at_the_deadline(inspections: Inspections) -> None:
    started = time.monotonic()
    with pytest.raises(PreconditionError, match=r"longer than 8 s.*--observe-timeout") as caught:
        inspections.ask(archive(Endless()), inspections.inspector(deadline_seconds=8.0))
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 20.0
    assert command_lines(str(inspections.root)) == {}


def test_a_model_that_takes_too_much_memory(inspections: Inspections) -> None:
    with pytest.raises(PreconditionError, match=r"4\.0 GiB.*--memory-per-job") as caught:
        inspections.ask(archive(Hungry()), inspections.inspector(memory_bytes=4 * GIB))
    assert caught.value.reason is Reason.WORKER_OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("script", "kind", "reason", "words"),
    [
        ("import ctypes; ctypes.string_at(0)", PreconditionError, Reason.WORKER_SIGNAL, "SIGSEGV"),
        ("raise SystemError('lost my head')", PreconditionError, Reason.WORKER_EXCEPTION, "lost my head"),
        ("raise MemoryError", PreconditionError, Reason.WORKER_OUT_OF_MEMORY, "memory"),
        ("import os; os.kill(os.getpid(), 9)", PreconditionError, Reason.WORKER_LOST, "killed from outside"),
        ("pass", PreconditionError, Reason.WORKER_LOST, "without an answer"),
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", UnavailableError, Reason.WORKER_NOT_INSTALLED, "install"),
        ("import os; os.symlink('/etc/hostname', 'out/answer.json')", PreconditionError, Reason.WORKER_LOST, "answer"),
        ("open('out/answer.json', 'w').write('{}{')", PreconditionError, Reason.WORKER_LOST, "answer"),
    ],
)  # fmt: skip
def test_each_death_has_its_reason(
    inspections: Inspections, script: str, kind: type[ServiceError], reason: Reason, words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        inspections.ask(scripted(), inspections.inspector(python_command("-c", script)))
    assert caught.value.reason is reason


def test_a_cancelled_call_kills_the_process(inspections: Inspections) -> None:
    inspector, ended = inspections.inspector(), threading.Event()
    request = InspectionRequest(model=inspections.put(archive(Endless())))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(inspector.inspect, OWNER, request, ended)
        wait_until(lambda: command_lines(f"inspect {inspections.root}"), 20.0, "the start of the process")
        ended.set()
        with pytest.raises(UnavailableError) as caught:
            running.result(timeout=10.0)
    assert caught.value.reason is Reason.CANCELLED
    assert command_lines(str(inspections.root)) == {}
    assert list(inspections.root.iterdir()) == []


def test_two_at_once_and_a_third_that_waits_in_vain(inspections: Inspections) -> None:
    inspector = inspections.inspector(concurrency=2, deadline_seconds=40.0)
    models = [inspections.put(archive(mlp(hidden))) for hidden in (4, 6)]
    with ThreadPoolExecutor(2) as pool:
        asked = [InspectionRequest(model=model) for model in models]
        found = list(pool.map(lambda request: inspector.inspect(OWNER, request, threading.Event()), asked))
    assert [one.groups[0].channels for one in found] == [4, 6]

    busy = inspections.inspector(python_command("-c", "import time; time.sleep(60)"), deadline_seconds=2.0)
    with ThreadPoolExecutor(2) as pool:
        ended = [threading.Event(), threading.Event()]
        both = [pool.submit(busy.inspect, OWNER, request, event) for request, event in zip(asked, ended, strict=True)]
        errors = [one.exception(timeout=20.0) for one in both]
    reasons = {error.reason for error in errors if isinstance(error, PreconditionError | CapacityError)}
    assert reasons <= {Reason.DEADLINE_EXCEEDED, Reason.QUEUE_FULL}
    assert Reason.DEADLINE_EXCEEDED in reasons


def test_a_cancelled_call_does_not_wait_for_its_turn(inspections: Inspections) -> None:
    inspector = inspections.inspector(python_command("-c", "import time; time.sleep(60)"), deadline_seconds=30.0)
    request, first, second = InspectionRequest(model=inspections.put(scripted())), threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(inspector.inspect, OWNER, request, first)
        wait_until(lambda: list(inspections.root.glob("*/in")), 10.0, "the first")
        waiting = pool.submit(inspector.inspect, OWNER, request, second)
        second.set()
        assert isinstance(waiting.exception(timeout=5.0), UnavailableError)
        first.set()
        assert isinstance(running.exception(timeout=10.0), UnavailableError)


def test_the_same_content_is_inspected_once(inspections: Inspections) -> None:
    asked: list[InspectionRequest] = []

    class Counting:
        def inspect(self, owner: str, request: InspectionRequest, cancelled: object) -> Inspection:
            assert owner
            assert cancelled
            asked.append(request)
            return Inspection(inputs=(), layers=(), groups=(), frozen=())

    service = InspectionService(inspections.world.artifacts, Counting())
    model = inspections.put(scripted())
    for request in (
        InspectionRequest(model=model),
        InspectionRequest(model=model),
        InspectionRequest(model=model, inputs=(TensorSpec(shape=(1, 1, 8, 8)),)),
        InspectionRequest(model=model, inputs=(TensorSpec(shape=(2, 1, 8, 8)),)),
        InspectionRequest(model=inspections.put(scripted())),
        InspectionRequest(model=inspections.put(traced())),
    ):
        service.inspect(OWNER, request, threading.Event())
    assert len(asked) == 4
