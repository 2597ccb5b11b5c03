"""The SDK: one object per server, every call of the API as a method on values."""

from __future__ import annotations

import builtins
import dataclasses
import json
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pruning_api.v1 import artifact_service_pb2 as artifact_api
from pruning_api.v1 import pruning_job_service_pb2 as job_api
from pruning_client.adapters import prepare_datasets
from pruning_client.connection import (
    CHECK_TIMEOUT_SECONDS,
    DEFAULT_SERVER,
    DEFAULT_TIMEOUT_SECONDS,
    Connection,
    TlsOptions,
)
from pruning_client.errors import DataLossError, NotFoundError, WaitTimeoutError
from pruning_client.retries import RetryPolicy, Timing
from pruning_client.sources import paths_of, replace_paths
from pruning_client.spec import Dynamic, RemoteFile, ScalarValue, Source, StoredArtifact, Submission
from pruning_client.transfer.download import download
from pruning_client.transfer.upload import ProgressCallback, digest_file, upload
from pruning_client.values import (
    Artifact,
    ArtifactKind,
    Event,
    Inspection,
    Job,
    JobState,
    ServerInfo,
    StrategyInfo,
    TensorSpec,
)
from pruning_client.watching import watch
from pruning_client.wire.answers import (
    artifact_from_wire,
    inspection_from_wire,
    job_from_wire,
    kind_to_wire,
    server_info_from_wire,
    state_to_wire,
    strategy_info_from_wire,
)
from pruning_client.wire.spec import argument_to_wire, axes_to_wire, source_to_wire, spec_to_wire

NOT_SENT = "not-sent-yet"
"""Stands for the artifact of a file that has not been uploaded."""

UploadCallback = Callable[[Path, int, int], None]
"""Called with the file, the bytes done and the bytes in all; from another thread."""

NoteCallback = Callable[[str], None]
"""Called with one line about how a dataset was read, e.g. which class got which number."""


class PruningClient:
    """A client of one pruning service; a context manager. Threads may share it.

    Example:
        with PruningClient("127.0.0.1:50051") as client:
            job = client.submit(Submission("model.pt", "val.npz", Static(), Sparsity(0.8)))
            job = client.wait(job.job_id)
            client.download_artifact(job.result.model_artifact_id, "pruned.pt")

    Args:
        server: HOST:PORT, [IPV6]:PORT or unix:PATH.
        tls_ca: PEM file with the CA that signed the server's certificate; None: no TLS.
        tls_cert, tls_key: PEM files with your certificate and its key, where the server wants to see one.
        token_file: file with the token to show; it is sent only over TLS or within this machine.
        timeout_seconds: deadline of unary calls.
        retry_policy: how stubborn to be; see `RetryPolicy`.
        timing: clock and waiting, for tests.

    Every method raises PruningClientError (see `pruning_client.errors`).
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        token_file: str | Path | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        retry_policy: RetryPolicy | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._connection = Connection(
            server,
            tls=TlsOptions(tls_ca, tls_cert, tls_key),
            token_file=token_file,
            policy=retry_policy or RetryPolicy(),
            timing=timing or Timing(),
            timeout_seconds=timeout_seconds,
        )

    def close(self) -> None:
        """Closes the connection; jobs go on."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- Artifacts ----------------------------------------------------------------------------------------------------

    def upload_artifact(
        self, path: str | Path, kind: ArtifactKind, progress: ProgressCallback | None = None
    ) -> Artifact:
        """Uploads a file, unless the server has its bytes, and returns the complete artifact."""
        return upload(self._connection, digest_file(path), kind, progress)

    def download_artifact(
        self, artifact_id: str, path: str | Path, progress: ProgressCallback | None = None
    ) -> Artifact:
        """Writes an artifact to `path`, whole and verified or not at all, and returns it."""
        return download(self._connection, artifact_id, path, progress)

    def get_artifact(self, artifact_id: str) -> Artifact:
        """Returns what is known about an artifact."""
        response = self._connection.unary(
            self._connection.artifacts.GetArtifact, artifact_api.GetArtifactRequest(artifact_id=artifact_id)
        )
        return artifact_from_wire(response.artifact)

    def list_artifacts(self, kind: ArtifactKind | None = None, *, page_size: int = 100) -> Iterator[Artifact]:
        """Yields every artifact of the kind, page by page."""
        token = ""
        while True:
            request = artifact_api.ListArtifactsRequest(page_size=page_size, page_token=token, kind=kind_to_wire(kind))
            response = self._connection.unary(self._connection.artifacts.ListArtifacts, request)
            yield from (artifact_from_wire(a) for a in response.artifacts)
            token = response.next_page_token
            if not token:
                return

    def delete_artifact(self, artifact_id: str) -> None:
        """Deletes an artifact that no unfinished job uses."""
        self._connection.unary(
            self._connection.artifacts.DeleteArtifact, artifact_api.DeleteArtifactRequest(artifact_id=artifact_id)
        )

    # --- Jobs ---------------------------------------------------------------------------------------------------------

    def submit(
        self,
        submission: Submission,
        request_id: str | None = None,
        validate_only: bool = False,
        *,
        labels: Mapping[str, str] | None = None,
        on_upload: UploadCallback | None = None,
        on_note: NoteCallback | None = None,
    ) -> Job:
        """Uploads the files that the request names by path, queues the job and returns it.

        Args:
            submission: what to prune, and how.
            request_id: a UUID; the same id with the same request returns the same job. None: a new one.
            validate_only: check everything that can be checked without running, and create nothing.
            labels: names and values to find the job by.
            on_upload: told about the bytes sent.
            on_note: told how folders and tables became datasets.
        """
        stored = self.store(submission, on_upload=on_upload, on_note=on_note)
        request = job_api.CreatePruningJobRequest(
            request_id=request_id or str(uuid.uuid4()),
            spec=spec_to_wire(stored),
            validate_only=validate_only,
            labels=dict(labels or {}),
        )
        response = self._connection.unary(
            self._connection.jobs.CreatePruningJob, request, timeout_seconds=CHECK_TIMEOUT_SECONDS
        )
        return job_from_wire(response.job)

    def check(self, submission: Submission) -> None:
        """Asks the server whether it would take the request, before any file is read or sent.

        What only the files themselves show is found when they are there: `submit` with `validate_only`.

        Raises:
            PruningClientError: as `submit` would, but for what is wrong with files named by path.
        """
        strategy = submission.strategy
        pending = replace_paths(submission, lambda _path: StoredArtifact(NOT_SENT))
        if isinstance(strategy, Dynamic) and strategy.continue_from_job_id:  # whose model the server has
            pending = dataclasses.replace(pending, model=StoredArtifact(""))
        spec = spec_to_wire(pending)
        request = job_api.CreatePruningJobRequest(spec=spec, validate_only=True, files_pending=True)
        request.request_id = str(uuid.uuid4())
        self._connection.unary(self._connection.jobs.CreatePruningJob, request, timeout_seconds=CHECK_TIMEOUT_SECONDS)

    def store(
        self,
        submission: Submission,
        *,
        on_upload: UploadCallback | None = None,
        on_note: NoteCallback | None = None,
    ) -> Submission:
        """Uploads the files that the request names by path, and returns it with their artifacts instead.

        Everything is read, and folders and tables are converted, before the first byte is sent.
        """
        with tempfile.TemporaryDirectory(prefix="prune-") as folder:
            prepared = prepare_datasets(submission, Path(folder), on_note or (lambda _note: None))
            digests = {path: digest_file(path) for path in paths_of(prepared)}
            stored: dict[Path, StoredArtifact] = {}
            for path, kind in paths_of(prepared).items():
                callback = None if on_upload is None else _for_file(on_upload, path)
                artifact = upload(self._connection, digests[path], kind, callback)
                stored[path] = StoredArtifact(artifact.artifact_id, artifact.sha256)
        return replace_paths(prepared, stored.__getitem__)

    def get(self, job_id: str) -> Job:
        """Returns the job as it is now."""
        response = self._connection.unary(
            self._connection.jobs.GetPruningJob, job_api.GetPruningJobRequest(job_id=job_id)
        )
        return job_from_wire(response.job)

    def list(
        self,
        *,
        states: Iterable[JobState] = (),
        labels: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[Job]:
        """Yields every job in one of the states (none given: all) with all of the labels, newest first."""
        wanted, token = [state_to_wire(state) for state in states], ""
        while True:
            request = job_api.ListPruningJobsRequest(
                page_size=page_size, page_token=token, states=wanted, labels=dict(labels or {})
            )
            response = self._connection.unary(self._connection.jobs.ListPruningJobs, request)
            yield from (job_from_wire(job) for job in response.jobs)
            token = response.next_page_token
            if not token:
                return

    def watch(self, job_id: str, *, after_sequence: int = 0, timeout_seconds: float | None = None) -> Iterator[Event]:
        """Yields a snapshot, then every event after `after_sequence` until the job ends, through restarts."""
        return watch(self._connection, job_id, after_sequence, timeout_seconds)

    def wait(
        self, job_id: str, timeout_seconds: float | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Job:
        """Returns the job once it has ended, however it ended: look at its `state`.

        Raises:
            WaitTimeoutError: `timeout_seconds` are over; the job goes on.
        """
        for event in self.watch(job_id, timeout_seconds=timeout_seconds):
            if on_event is not None:
                on_event(event)
        job = self.get(job_id)
        if not job.state.is_terminal:
            raise WaitTimeoutError(f"job {job_id} is {job.state} although its events have ended")
        return job

    def cancel(self, job_id: str) -> Job:
        """Asks the server to stop the job; it is CANCELLED once its worker is gone."""
        response = self._connection.unary(
            self._connection.jobs.CancelPruningJob, job_api.CancelPruningJobRequest(job_id=job_id)
        )
        return job_from_wire(response.job)

    def delete(self, job_id: str) -> None:
        """Deletes a job that has ended, its events and what only it needs."""
        self._connection.unary(self._connection.jobs.DeletePruningJob, job_api.DeletePruningJobRequest(job_id=job_id))

    def report(self, job: Job) -> dict[str, Any]:
        """Returns the report of a job that has one, as parsed JSON.

        Raises:
            NotFoundError: the job has no report.
        """
        if job.result is None or not job.result.report_artifact_id:
            raise NotFoundError(f"job {job.job_id} has no report: it is {job.state}")
        with tempfile.TemporaryDirectory(prefix="prune-") as folder:
            path = Path(folder) / "report.json"
            self.download_artifact(job.result.report_artifact_id, path)
            try:
                report = json.loads(path.read_bytes())
            except ValueError as error:
                raise DataLossError(f"the report of job {job.job_id} is not JSON: {error}") from error
        if not isinstance(report, dict):
            raise DataLossError(f"the report of job {job.job_id} is not a JSON object")
        return report

    # --- The server ---------------------------------------------------------------------------------------------------

    def inspect(
        self,
        model: Source,
        *,
        samples: Source | None = None,
        inputs: Iterable[TensorSpec] = (),
        arguments: Mapping[int, ScalarValue] | None = None,
        dynamic_axes: Mapping[int, Iterable[int]] | None = None,
    ) -> Inspection:
        """Returns what could be pruned in a model, observed with samples or with inputs of the given shapes.

        `dynamic_axes`: by position of an input, its axes that may have any length; a second one is observed too.
        """
        request = job_api.InspectModelRequest(
            model=source_to_wire(self._stored(model, ArtifactKind.TORCHSCRIPT)),
            samples=None if samples is None else source_to_wire(self._stored(samples, ArtifactKind.DATASET)),
            inputs=[job_api.TensorSpec(shape=t.shape, dtype=t.dtype) for t in inputs],
            arguments=[argument_to_wire(position, value) for position, value in (arguments or {}).items()],
            dynamic_axes=axes_to_wire(dynamic_axes or {}),
        )
        response = self._connection.unary(
            self._connection.jobs.InspectModel, request, timeout_seconds=CHECK_TIMEOUT_SECONDS
        )
        return inspection_from_wire(response)

    def list_strategies(self) -> builtins.list[StrategyInfo]:
        """Returns the strategies of that server with their criteria."""
        response = self._connection.unary(self._connection.jobs.ListStrategies, job_api.ListStrategiesRequest())
        return [strategy_info_from_wire(s) for s in response.strategies]

    def server_info(self) -> ServerInfo:
        """Returns the server's versions, devices and limits."""
        response = self._connection.unary(self._connection.jobs.GetServerInfo, job_api.GetServerInfoRequest())
        return server_info_from_wire(response)

    def _stored(self, source: Source, kind: ArtifactKind) -> StoredArtifact | RemoteFile:
        if isinstance(source, StoredArtifact | RemoteFile):
            return source
        artifact = self.upload_artifact(source, kind)
        return StoredArtifact(artifact.artifact_id, artifact.sha256)


def _for_file(on_upload: UploadCallback, path: Path) -> ProgressCallback:
    return lambda done, total: on_upload(path, done, total)
