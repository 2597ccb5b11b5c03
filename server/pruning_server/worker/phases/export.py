"""EXPORT: the files in `out/`."""

from __future__ import annotations

import hashlib

from pruning_server.jobs.events import RunSucceeded
from pruning_server.jobs.workspace import EXPECTED_FILE, PRUNED_FILE, REPORT_FILE, WorkerJob
from pruning_server.spec.base import to_json
from pruning_server.spec.phases import Phase
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.phases.evaluate import Evaluated
from pruning_server.worker.phases.load import Loaded
from pruning_server.worker.phases.observe import Observed
from pruning_server.worker.phases.plan import Pruned
from pruning_server.worker.phases.recover import Trained
from pruning_server.worker.phases.verify import Final
from pruning_server.worker.report import assemble_report
from pruning_server.worker.story import Story


def export(
    job: WorkerJob,
    folder: RunFolder,
    loaded: Loaded,
    observed: Observed,
    pruned: Pruned,
    trained: Trained,
    final: Final,
    evaluated: Evaluated,
    story: Story,
) -> RunSucceeded:
    """Writes the sample outputs, the report and, last, the model; returns the message that ends the run."""
    folder.write(EXPECTED_FILE, final.expected)
    # What is left of this phase is writing two files, which the report cannot time before it is written.
    timings = {**story.timings, Phase.EXPORT.value: story.elapsed_seconds()}
    report = assemble_report(
        job,
        loaded,
        observed,
        pruned,
        trained,
        final,
        evaluated,
        pruned_sha256=hashlib.sha256(final.content).hexdigest(),
        timings=timings,
    )
    folder.write(REPORT_FILE, to_json(report))
    folder.write(PRUNED_FILE, final.content)
    return RunSucceeded(
        verdict=report.generalization.verdict,
        sparsity=report.strategy.achieved_sparsity,
        accuracy_drop=-report.accuracy.delta,
        device_type=job.device.split(":", 1)[0],
    )
