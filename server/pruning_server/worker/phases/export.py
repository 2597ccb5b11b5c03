"""EXPORT: the files in `out/`."""

from __future__ import annotations

from pruning_server.jobs.events import RunSucceeded
from pruning_server.jobs.workspace import EXPECTED_FILE, PRUNED_FILE, REPORT_FILE, WorkerJob
from pruning_server.spec.base import to_json
from pruning_server.spec.phases import Phase
from pruning_server.worker.folder import RunFolder
from pruning_server.worker.report import Results, assemble_report
from pruning_server.worker.story import Story


def export(job: WorkerJob, folder: RunFolder, results: Results, story: Story) -> RunSucceeded:
    """Writes the sample outputs, the report and, last, the model; returns the message that ends the run."""
    folder.write(EXPECTED_FILE, results.final.expected)
    # What is left of this phase is writing two files, which the report cannot time before it is written.
    timings = {**story.timings, Phase.EXPORT.value: story.elapsed_seconds()}
    report = assemble_report(job, results, timings)
    folder.write(REPORT_FILE, to_json(report))
    folder.write(PRUNED_FILE, results.final.content)
    return RunSucceeded(
        verdict=report.generalization.verdict,
        sparsity=report.strategy.achieved_sparsity,
        accuracy_drop=0.0 - report.accuracy.delta,
        device_type=job.device.split(":", 1)[0],
    )
