"""Fills the folder of one run with what the worker may see, and takes out what it left; see `jobs/workspace.py`."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pruning_server.errors import JobFailureError, Reason
from pruning_server.jobs import workspace
from pruning_server.jobs.model import Job
from pruning_server.jobs.ports import ArtifactStore, CancelToken, Gate
from pruning_server.jobs.workspace import InputFile, WorkerJob
from pruning_server.spec.artifacts import ArtifactKind, DatasetSummary
from pruning_server.spec.base import to_json
from pruning_server.spec.request import ArtifactRef, DynamicStrategy

MAX_REPORT_BYTES = 256 * 1024 * 1024
FINAL_MODEL = "final/pruned.pt"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one attempt. `create` starts from nothing, whatever an earlier run of the same number left."""

    root: Path
    job: Job

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root / self.job.job_id / str(self.job.attempt)

    def create(self) -> None:
        """Makes the folder and its parts, empty and readable for nobody else."""
        self.remove()
        for part in ("in", "out", "final"):
            (self.path / part).mkdir(parents=True, mode=0o700)
        self.path.chmod(0o700)

    def remove(self) -> None:
        """Deletes the folder, and that of the job if this was its only one."""
        shutil.rmtree(self.path, ignore_errors=True)
        # Fails where the folder of another attempt is still in it, or was never made.
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()

    def fill(
        self,
        gate: Gate,
        artifacts: ArtifactStore,
        cancelled: CancelToken,
        *,
        device: str,
        threads: int,
        service_version: str,
    ) -> None:
        """Writes the inputs, each re-packed by the gate, and `job.json`.

        Raises:
            ServiceError: an artifact is gone, or the gate refuses it.
        """
        spec = self.job.spec
        packer = _Packer(self.path, self.job.owner, gate, artifacts, cancelled)
        loss = spec.loss_module
        worker_job = WorkerJob(
            job_id=self.job.job_id,
            attempt=self.job.attempt,
            spec=spec,
            model=packer.pack(spec.model, ArtifactKind.TORCHSCRIPT, workspace.MODEL_FILE),
            validation=packer.pack(spec.validation, ArtifactKind.DATASET, workspace.VALIDATION_STEM),
            train=packer.pack(spec.train, ArtifactKind.DATASET, workspace.TRAIN_STEM) if spec.train else None,
            loss_module=packer.pack(loss, ArtifactKind.LOSS, workspace.LOSS_FILE) if loss else None,
            methods=tuple(
                workspace.MethodFile(
                    method=item.method,
                    file=packer.pack(item.samples, ArtifactKind.DATASET, f"{workspace.METHOD_STEM}-{number}"),
                )
                for number, item in enumerate(spec.method_samples)
            ),
            earlier=self._earlier(packer),
            device=device,
            threads=threads,
            created=dt.datetime.fromtimestamp(self.job.create_time, dt.UTC).isoformat(),
            service_version=service_version,
        )
        (self.path / workspace.JOB_FILE).write_bytes(to_json(worker_job))

    def _earlier(self, packer: _Packer) -> workspace.EarlierFiles | None:
        strategy, found = self.job.spec.strategy, self.job.spec.continuation
        if found is None or not isinstance(strategy, DynamicStrategy):
            return None
        return workspace.EarlierFiles(
            job_id=strategy.continue_from_job_id or "",
            model=packer.pack(found.pruned, ArtifactKind.TORCHSCRIPT, workspace.EARLIER_MODEL_FILE),
            report=packer.copy(found.report, workspace.EARLIER_REPORT_FILE),
        )

    def output(self, name: str) -> Path:
        """The path of a file that the worker wrote.

        Raises:
            JobFailureError: RESULT_REFUSED, if it is missing or anything but a plain file of its own.
        """
        for part in (self.path / "out", self.path / name):
            try:
                found = part.lstat()
            except OSError:
                raise _refused(f"the worker did not write {name}") from None
            plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
            if not (plain or (part.name == "out" and stat.S_ISDIR(found.st_mode))):
                raise _refused(f"{name} is not a plain file")
        return self.path / name

    def reported_sha256(self) -> str:
        """The SHA-256 of the pruned model that the report names."""
        report = self.output(workspace.REPORT_FILE)
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise _refused("the report is larger than 256 MiB")
        try:
            head = msgspec.json.decode(report.read_bytes(), type=_ReportHead)
        except msgspec.DecodeError as error:
            raise _refused(f"the report cannot be read ({error})") from error
        return head.model.pruned_sha256


class _ReportModel(msgspec.Struct):
    pruned_sha256: str


class _ReportHead(msgspec.Struct):
    model: _ReportModel


@dataclass(frozen=True)
class _Packer:
    folder: Path
    owner: str
    gate: Gate
    artifacts: ArtifactStore
    cancelled: CancelToken

    def pack(self, ref: ArtifactRef, kind: ArtifactKind, name: str) -> InputFile:
        """Re-packs one artifact to `name`; a dataset gets the suffix of its container."""
        artifact = self.artifacts.get(self.owner, ref.artifact_id)
        source = self.artifacts.path(ref.artifact_id)
        destination = self.folder / name
        summary = self.gate.repack(kind, source, destination, cancelled=self.cancelled)
        if isinstance(summary, DatasetSummary):
            name = f"{name}.{summary.container}"
            destination.rename(self.folder / name)
        return InputFile(path=name, sha256=artifact.sha256, size_bytes=artifact.size_bytes)

    def copy(self, ref: ArtifactRef, name: str) -> InputFile:
        """Copies a file that the service itself has written: a report."""
        artifact = self.artifacts.get(self.owner, ref.artifact_id)
        shutil.copyfile(self.artifacts.path(ref.artifact_id), self.folder / name)
        return InputFile(path=name, sha256=artifact.sha256, size_bytes=artifact.size_bytes)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, lower-case hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_stale(root: Path) -> None:
    """Deletes the folders of runs that a dead server left; call it before any run of this one."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for entry in os.scandir(root):
        shutil.rmtree(entry.path, ignore_errors=True)


def _refused(why: str) -> JobFailureError:
    return JobFailureError(Reason.RESULT_REFUSED, f"The result was refused: {why}. This is a fault of the service.")
