"""Runs of the worker on folders laid out as the executor lays them out."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from helpers.report_schema import check_report
from pruning_server.archive.dataset import repack_dataset
from pruning_server.archive.model import repack_model
from pruning_server.errors import ServiceError
from pruning_server.jobs.events import CheckPassed, RunFailed, RunSucceeded, WorkerMessage
from pruning_server.jobs.ports import Clock
from pruning_server.jobs.workspace import (
    EARLIER_MODEL_FILE,
    EARLIER_REPORT_FILE,
    JOB_FILE,
    LOSS_FILE,
    METHOD_STEM,
    MODEL_FILE,
    PRUNED_FILE,
    REPORT_FILE,
    TRAIN_STEM,
    VALIDATION_STEM,
    EarlierFiles,
    InputFile,
    MethodFile,
    WorkerJob,
)
from pruning_server.spec.base import to_json
from pruning_server.spec.request import (
    ArtifactRef,
    ConditionalStrategy,
    FineTune,
    PruningSpec,
    StaticStrategy,
    Target,
    TargetKind,
)
from pruning_server.worker.check import check_run
from pruning_server.worker.failures import failure_message
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.pipeline import run_job
from pruning_server.worker.story import Story

REF = ArtifactRef(artifact_id="a")
_decoder = msgspec.json.Decoder(WorkerMessage)


def sparsity(value: float) -> Target:
    """A target."""
    return Target(kind=TargetKind.SPARSITY, value=value)


def threshold(value: float) -> Target:
    """A target."""
    return Target(kind=TargetKind.THRESHOLD, value=value)


def make_spec(target: Target | None = None, **changes: Any) -> PruningSpec:
    """A static request of half the weights unless told otherwise; two epochs, to be quick. Conditions need no target."""
    needed = not isinstance(changes.get("strategy"), ConditionalStrategy)
    fields: dict[str, Any] = {
        "model": REF,
        "validation": REF,
        "strategy": StaticStrategy(),
        "target": target or (sparsity(0.5) if needed else None),
        "fine_tune": FineTune(epochs=2, learning_rate=1e-3),
    }
    return PruningSpec(**(fields | changes))


def make_workspace(
    root: Path,
    model: Path | torch.jit.ScriptModule,
    data: Mapping[str, np.ndarray],
    spec: PruningSpec,
    *,
    train: Mapping[str, np.ndarray] | None = None,
    loss: torch.jit.ScriptModule | None = None,
    methods: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    earlier: Path | None = None,
    threads: int = 1,
) -> Path:
    """Lays the folder of a run out as the executor does, through the gate's own re-packing.

    `earlier`: the folder of a run that has ended well, from which this one continues.
    """
    (root / "in").mkdir(parents=True)
    (root / "out").mkdir()
    job = WorkerJob(
        job_id="job",
        attempt=1,
        spec=spec,
        model=_model(root, MODEL_FILE, model),
        validation=_dataset(root, f"{VALIDATION_STEM}.npz", data),
        train=_dataset(root, f"{TRAIN_STEM}.npz", train) if train is not None else None,
        loss_module=_model(root, LOSS_FILE, loss) if loss is not None else None,
        methods=tuple(
            MethodFile(method=name, file=_dataset(root, f"{METHOD_STEM}-{number}.npz", arrays))
            for number, (name, arrays) in enumerate((methods or {}).items())
        ),
        earlier=_earlier(root, earlier) if earlier is not None else None,
        device="cpu",
        threads=threads,
        created="2026-01-01T00:00:00Z",
        service_version="0.0.0",
    )
    (root / JOB_FILE).write_bytes(to_json(job))
    return root


def _earlier(root: Path, earlier: Path) -> EarlierFiles:
    report = (earlier / REPORT_FILE).read_bytes()
    (root / EARLIER_REPORT_FILE).write_bytes(report)
    return EarlierFiles(
        job_id="earlier",
        model=_model(root, EARLIER_MODEL_FILE, earlier / PRUNED_FILE),
        report=InputFile(path=EARLIER_REPORT_FILE, sha256=hashlib.sha256(report).hexdigest(), size_bytes=len(report)),
    )


def _model(root: Path, name: str, model: Path | torch.jit.ScriptModule) -> InputFile:
    content = model.read_bytes() if isinstance(model, Path) else model.save_to_buffer()
    with (root / name).open("wb") as file:
        repack_model(io.BytesIO(content), file, compress=False)
    return InputFile(path=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def _dataset(root: Path, name: str, arrays: Mapping[str, np.ndarray]) -> InputFile:
    source = io.BytesIO()
    np.savez(source, **arrays)
    with (root / name).open("wb") as file:
        repack_dataset(io.BytesIO(source.getvalue()), file)
    content = source.getvalue()
    return InputFile(path=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


@dataclass
class Recorder:
    """A sink that keeps what it is sent."""

    messages: list[WorkerMessage] = field(default_factory=list)

    def send(self, message: WorkerMessage) -> None:
        """Keeps it."""
        self.messages.append(message)


class TickingClock:
    """A clock that moves on a little with every look at it."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.monotonic()

    def monotonic(self) -> float:
        """Seconds."""
        self._now += 0.05
        return self._now


@dataclass
class Ran:
    """How a run ended, with the files that it left."""

    root: Path
    last: RunSucceeded | RunFailed
    messages: list[WorkerMessage]

    @property
    def report(self) -> dict[str, Any]:
        """The report as users read it."""
        assert isinstance(self.last, RunSucceeded), self.last
        return check_report(json.loads((self.root / REPORT_FILE).read_bytes()))

    @property
    def rungs(self) -> dict[str, dict[str, Any]]:
        """What recovery tried, by name."""
        return {rung["name"]: rung for rung in self.report["strategy"]["recovery"]["rungs"]}

    def require_recovered(self, most: float = 0.95) -> None:
        """Gradient steps were taken, and what is delivered loses clearly less on select than the pruned model did.

        Which rung won is left open: two good ones may be closer than the rounding of two processors lets them be.
        """
        rungs = self.rungs
        kept, nothing = rungs[self.report["strategy"]["recovery"]["kept"]], rungs["nothing"]
        assert rungs["fine_tuning"]["gradient_steps"] > 0
        assert kept["loss"] < most * nothing["loss"]

    @property
    def pruned(self) -> torch.jit.ScriptModule:
        """The pruned model, loaded by torch alone."""
        assert isinstance(self.last, RunSucceeded), self.last
        return torch.jit.load(str(self.root / PRUNED_FILE))

    @property
    def failure(self) -> RunFailed:
        """The failure."""
        assert isinstance(self.last, RunFailed), self.last
        return self.last

    def check(self) -> CheckPassed:
        """What the check says, in this process."""
        return check_run(RunFolder(self.root))


def run_here(root: Path, clock: Clock | None = None) -> Ran:
    """Runs the job of a folder in this process; errors become the message that the process would send."""
    recorder = Recorder()
    story = Story(recorder, clock or TickingClock())
    folder = RunFolder(root)
    last: RunSucceeded | RunFailed
    try:
        last = run_job(folder.job(), folder, story)
    except (ServiceError, MemoryError) as error:
        last = failure_message(error, story.phase)
    return Ran(root, last, recorder.messages)


def run_process(command: str, root: Path, *flags: str, timeout_seconds: float = 120.0) -> tuple[int, list[Any], str]:
    """Runs the worker as the executor does; returns exit code, messages and stderr."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "pruning_server.worker", command, "--workspace", str(root), "--events-fd",
            str(writer), *flags,
        ],
        pass_fds=[writer], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read().splitlines()
    _, errors = process.communicate(timeout=timeout_seconds)
    return process.returncode, decode(lines), errors.decode(errors="replace")


def decode(lines: Sequence[bytes]) -> list[Any]:
    """Messages of lines."""
    return [_decoder.decode(line) for line in lines]
