"""How long the model takes without some channels, measured: the really shrunk archive against the original, in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from pruning_server.errors import JobFailureError, Reason
from pruning_server.evaluation.cost import measure_latency
from pruning_server.graph.modules import StateGuard
from pruning_server.graph.structure import Removal
from pruning_server.jobs.workspace import WorkerJob
from pruning_server.spec.report import LatencySection
from pruning_server.worker.feeding import Rows
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.story import Story
from pruning_server.worker.structures import remove_channels, sample_runs, sized_runs

TRIAL_SECONDS = 2.0
CAREFUL_SECONDS = 8.0


class LatencyMeter(Protocol):
    """Measures the latency ratio, after / before, of a removal of channels."""

    def __call__(self, removal: Removal, *, careful: bool = False) -> float:
        """The ratio of the medians; `careful`: of more runs."""
        ...


def latency_meter(job: WorkerJob, loaded: Loaded, observed: Observed, folder: RunFolder, story: Story) -> LatencyMeter:
    """A meter that cuts, saves, loads and runs as the job's result will be run, at the batch size of the report."""

    def ratio(removal: Removal, *, careful: bool = False) -> float:
        if observed.channels is None:
            raise JobFailureError(Reason.INTERNAL, "A latency was asked for without channels; please report this.")
        feeds = {"forward": observed.feed, **observed.method_feeds}
        runs = [(name, inputs) for name, feed in feeds.items() for inputs in sample_runs(feed, observed.rule)]
        runs += [("forward", inputs) for inputs in sized_runs(observed.feed, observed.rule, observed.sizes)]
        removed = remove_channels(loaded.archive, observed.channels, removal, folder, runs)
        original, pruned = compare_latency(
            job,
            observed,
            loaded.original,
            removed.archive.load().eval(),
            story,
            CAREFUL_SECONDS if careful else TRIAL_SECONDS,
        )
        return pruned.p50 / original.p50

    return ratio


def compare_latency(
    job: WorkerJob,
    observed: Observed,
    original: torch.jit.ScriptModule,
    pruned: torch.jit.ScriptModule,
    story: Story,
    max_seconds: float,
) -> tuple[LatencySection, LatencySection]:
    """Both models on one batch of the caller's samples, in turns; states are put back."""
    samples = len(observed.feed.samples)
    batch = observed.rule.exact_batch or min(job.spec.evaluation.latency_batch_size, samples)
    rows: Rows = [row % samples for row in range(batch)]
    inputs = observed.feed.inputs(rows)

    def call(module: torch.jit.ScriptModule) -> Callable[[], object]:
        def once() -> object:
            with torch.no_grad():
                return module(*inputs)

        return once

    with StateGuard(original), StateGuard(pruned):
        return measure_latency(
            call(original),
            call(pruned),
            batch=batch,
            device=job.device,
            threads=job.threads,
            clock=story.clock.monotonic,
            synchronize=_synchronize(job.device),
            max_seconds=max_seconds,
        )


def _synchronize(device: str) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if device.startswith("cuda") else (lambda: None)
