"""The folder of one run: the contract between the executor that fills it and the worker that works in it.

<data-dir>/jobs/<job_id>/<attempt>/
    job.json            WorkerJob
    in/model.pt         the archive, as the gate wrote it
    in/validation.npz   or .safetensors; likewise train.*
    in/method-0.npz     samples of the first exported method that has some, and so on
    in/loss.pt          where the caller sent a loss module
    in/earlier.pt       the pruned model of the job that this one continues from, as the gate wrote it
    in/earlier.json     and its report
    out/pruned.pt       written by the worker, last of all renamed into place
    out/report.json
    out/expected.npz    sample inputs and the outputs of the final model in memory, for the check in a fresh process
"""

from __future__ import annotations

from pruning_server.spec.base import Value
from pruning_server.spec.request import PruningSpec

JOB_FILE = "job.json"
MODEL_FILE = "in/model.pt"
VALIDATION_STEM = "in/validation"
TRAIN_STEM = "in/train"
METHOD_STEM = "in/method"
LOSS_FILE = "in/loss.pt"
EARLIER_MODEL_FILE = "in/earlier.pt"
EARLIER_REPORT_FILE = "in/earlier.json"
PRUNED_FILE = "out/pruned.pt"
REPORT_FILE = "out/report.json"
EXPECTED_FILE = "out/expected.npz"


class InputFile(Value, frozen=True, kw_only=True):
    """A file of the run, relative to its folder, and the SHA-256 of the artifact that it came from."""

    path: str
    sha256: str
    size_bytes: int


class MethodFile(Value, frozen=True, kw_only=True):
    """Samples of an exported method other than forward."""

    method: str
    file: InputFile


class EarlierFiles(Value, frozen=True, kw_only=True):
    """The result of the job that this one continues from: its pruned model and its report."""

    job_id: str
    model: InputFile
    report: InputFile


class WorkerJob(Value, frozen=True, kw_only=True):
    """Everything that a worker is told: `job.json`."""

    job_id: str
    attempt: int
    spec: PruningSpec
    model: InputFile
    validation: InputFile
    train: InputFile | None
    loss_module: InputFile | None
    methods: tuple[MethodFile, ...] = ()
    earlier: EarlierFiles | None = None
    # What the executor leased: `cpu` or `cuda:N`, never `auto`.
    device: str
    threads: int
    created: str
    service_version: str
