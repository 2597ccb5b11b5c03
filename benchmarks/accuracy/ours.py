"""Jobs of this service: worker and check as the executor runs them, on a folder laid out as the executor does."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from accuracy.results import Measured
from accuracy.speed import speed_up, store_channels_last
from accuracy.task import Arrays, Task
from helpers.runs import make_spec, make_workspace, run_process
from pruning_server.jobs.workspace import PRUNED_FILE, REPORT_FILE
from pruning_server.spec.request import FineTune, StaticStrategy, Target

TIMEOUT_SECONDS = 7200.0
SPEED_BATCH = 64


@dataclass(frozen=True)
class Asked:
    """What a job is asked for; `epochs` None: as many as the service thinks right, 0: no gradient step."""

    strategy: StaticStrategy
    target: Target
    epochs: int | None


def run_ours(task: Task, data: Arrays, asked: Asked, seed: int, threads: int, timed: bool = True) -> Measured:
    """Runs a job and judges what it delivers; raises SystemExit with the job's message where it fails."""
    spec = make_spec(
        asked.target,
        strategy=asked.strategy,
        fine_tune=FineTune(epochs=asked.epochs),
        preprocessing=task.preprocessing,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        archive = task.save(Path(folder) / "model.pt")
        root = make_workspace(Path(folder) / "run", archive, data, spec, threads=threads)
        start = time.perf_counter()
        for command in ("run", "check"):
            code, messages, errors = run_process(command, root, timeout_seconds=TIMEOUT_SECONDS)
            if code:
                raise SystemExit(f"{task.name}: {command} ended with {code}: {messages[-1:]} {errors[-2000:]}")
        seconds = time.perf_counter() - start
        report = json.loads((root / REPORT_FILE).read_bytes())
        pruned = torch.jit.load(str(root / PRUNED_FILE)).eval()
        original = torch.jit.load(str(archive)).eval()
        turned = store_channels_last(torch.jit.load(str(archive)))
        cost = report["cost"]
        macs = [cost[which]["macs"] for which in ("original", "pruned")]
        example = torch.randn(SPEED_BATCH, *task.shape, generator=torch.Generator().manual_seed(seed))
        return Measured(
            original=task.accuracy(original),
            accuracy=task.accuracy(pruned),
            seconds=seconds,
            threads=threads,
            macs_ratio=macs[1] / macs[0],
            speed_up=speed_up(original, pruned, example) if timed else None,
            layout_speed_up=speed_up(original, turned, example) if timed else None,
            bytes_ratio=(root / PRUNED_FILE).stat().st_size / archive.stat().st_size,
            sparsity=_zeros(pruned),
            kept=report["strategy"]["recovery"]["kept"],
        )


def _zeros(model: torch.jit.ScriptModule) -> float:
    """Fraction of the weights with more than one axis that are zero."""
    kernels = [value for value in model.state_dict().values() if value.dim() > 1]
    return sum(int((kernel == 0).sum()) for kernel in kernels) / sum(kernel.numel() for kernel in kernels)
