"""Runs a job on this machine: a worker process, a second one that checks its result, and the gate before and after."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pruning_server.adapters.containment import NO_WALLS, Containment
from pruning_server.adapters.exits import ExitCause, Overdue, WorkerEnd, failure_of
from pruning_server.adapters.failpoints import Failpoints, no_failpoints
from pruning_server.adapters.process import Child, child_environment, python_command, visible_cuda_device
from pruning_server.adapters.run_folder import FINAL_MODEL, RunFolder, remove_stale, sha256_of
from pruning_server.adapters.supervisor import Supervisor, WorkerLimits
from pruning_server.adapters.usage import Allowance, disk_allowance
from pruning_server.errors import (
    CapacityError,
    InvalidArtifactError,
    JobFailureError,
    Reason,
    ServiceError,
    UnavailableError,
)
from pruning_server.jobs.events import CheckPassed, RunSucceeded, WorkerMessage
from pruning_server.jobs.model import Failure, Job, Result
from pruning_server.jobs.ports import ArtifactStore, CancelToken, Clock, Gate, RunOutcome
from pruning_server.jobs.workspace import PRUNED_FILE, REPORT_FILE
from pruning_server.spec.artifacts import ArtifactKind
from pruning_server.spec.phases import Phase

WORKER_COMMAND = python_command("-m", "pruning_server.worker")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExecutorLimits:
    """Bounds of every run.

    Attributes:
        memory_bytes: of one worker, where the job asks for nothing else.
        job_timeout_seconds: likewise, counted from the job's first start.
        load_timeout_seconds: of the phase LOAD.
        observe_timeout_seconds: of the phase OBSERVE.
        start_timeout_seconds: from the worker's start to its first phase.
        silence_timeout_seconds: without any message; a worker that lives sends one every few seconds.
        threads: of one worker.
    """

    memory_bytes: int
    job_timeout_seconds: float = 24 * 3600.0
    load_timeout_seconds: float = 60.0
    observe_timeout_seconds: float = 60.0
    start_timeout_seconds: float = 120.0
    silence_timeout_seconds: float = 60.0
    threads: int = 1


@dataclass(frozen=True)
class _Parts:
    """What every run of an executor shares."""

    root: Path
    gate: Gate
    artifacts: ArtifactStore
    clock: Clock
    limits: ExecutorLimits
    service_version: str
    worker_command: tuple[str, ...]
    containment: Containment
    failpoints: Failpoints


class LocalExecutor:
    """One worker process per run, on this machine. Removes the folders that earlier servers left when it is made."""

    def __init__(  # noqa: PLR0913 - all that a run needs, each part by its name
        self,
        *,
        root: Path,
        gate: Gate,
        artifacts: ArtifactStore,
        clock: Clock,
        limits: ExecutorLimits,
        service_version: str,
        worker_command: tuple[str, ...] = WORKER_COMMAND,
        containment: Containment = NO_WALLS,
        failpoints: Failpoints = no_failpoints,
    ) -> None:
        self._parts = _Parts(
            root, gate, artifacts, clock, limits, service_version, worker_command, containment, failpoints
        )
        remove_stale(root)

    def run(
        self, job: Job, device: str, on_message: Callable[[WorkerMessage], None], cancelled: CancelToken
    ) -> RunOutcome:
        """Blocks until the run is over; never raises for what the worker does. One call at a time per job."""
        folder = RunFolder(self._parts.root, job)
        try:
            folder.create()
            return _LocalRun(self._parts, job, device, folder, on_message, cancelled).carry_out()
        except _EndedError as ended:
            return ended.outcome
        except ServiceError as error:
            return _outcome_of(error)
        except OSError as error:
            _log.exception("job %s attempt %d: the server's own files failed", job.job_id, job.attempt)
            return _outcome_of_disk(error)
        finally:
            folder.remove()


class _EndedError(Exception):
    """Ends a run from within a step."""

    def __init__(self, outcome: RunOutcome) -> None:
        super().__init__("the run is over")
        self.outcome = outcome


class _LocalRun:
    """The steps of one run; each returns or raises what ends it."""

    def __init__(
        self,
        parts: _Parts,
        job: Job,
        device: str,
        folder: RunFolder,
        on_message: Callable[[WorkerMessage], None],
        cancelled: CancelToken,
    ) -> None:
        self._parts = parts
        self._job = job
        self._device = device
        self._folder = folder
        self._on_message = on_message
        self._cancelled = cancelled
        self._memory_bytes = job.spec.limits.memory_bytes or parts.limits.memory_bytes
        self._limits = _worker_limits(job, parts.limits, parts.clock)

    def carry_out(self) -> RunOutcome:
        self._check_time()
        self._folder.fill(
            self._parts.gate,
            self._parts.artifacts,
            self._cancelled,
            device=_device_in_worker(self._device),
            threads=self._parts.limits.threads,
            service_version=self._parts.service_version,
        )
        succeeded = self._work()
        self._compare()
        result = self._store_result(succeeded)
        self._on_message(succeeded)
        required = self._job.spec.evaluation.required_verdict
        if required is not None and result.verdict is not required:
            return _verdict_missed(result, required.value)
        return RunOutcome(result=result, failure=None, retryable=False, exit_cause=ExitCause.OK.value)

    def _work(self) -> RunSucceeded:
        end = self._supervise(None, "run")
        if isinstance(end.final, RunSucceeded):
            return end.final
        raise self._ended_by(end)

    def _compare(self) -> None:
        """Has a fresh process load the pruned model and compare its outputs with those of the model in memory."""
        end = self._supervise(Phase.EXPORT, "check")
        if not isinstance(end.final, CheckPassed):
            raise self._ended_by(end)

    def _supervise(self, phase: Phase | None, command: str) -> WorkerEnd:
        self._check_time()
        folder, threads = self._folder.path, self._parts.limits.threads
        arguments = ["--workspace", str(folder), "--memory-bytes", str(self._memory_bytes)]
        allowance = Allowance(memory_bytes=self._memory_bytes, folder=folder, disk_bytes=disk_allowance(folder))
        containment = self._parts.containment
        environment = child_environment(home=folder, threads=threads, cuda_devices=_cuda_devices(self._device))
        with (
            containment.group(allowance) as group,
            Child(
                [*self._parts.worker_command, command, *arguments],
                folder=folder,
                environment=environment,
                events_flag="--events-fd",
                policy=containment.policy(allowance, is_cuda=self._device.startswith("cuda")),
            ) as child,
        ):
            self._parts.failpoints("worker.spawned")
            if group is not None:
                group.add(child.pid)
            supervisor = Supervisor(
                child,
                limits=replace(self._limits, allowance=allowance),
                on_message=self._on_message,
                cancelled=self._cancelled,
                clock=self._parts.clock,
                phase=phase,
            )
            return supervisor.watch()

    def _ended_by(self, end: WorkerEnd) -> _EndedError:
        if end.cause not in {ExitCause.OK, ExitCause.CANCELLED}:
            _log.warning(
                "job %s attempt %d: the worker ended (%s, code %d); the end of what it wrote to stderr:\n%s",
                self._job.job_id,
                self._job.attempt,
                end.cause.value,
                end.status.code,
                end.stderr_text,
            )
        failure = failure_of(end, self._memory_bytes)
        outcome = RunOutcome(result=None, failure=failure, retryable=end.retryable, exit_cause=end.cause.value)
        return _EndedError(outcome)

    def _store_result(self, succeeded: RunSucceeded) -> Result:
        """Lets the gate re-pack the pruned model, holds the report to it, and stores both."""
        self._check_time()
        promised = self._folder.reported_sha256()
        final = self._folder.path / FINAL_MODEL
        try:
            source = self._folder.output(PRUNED_FILE)
            self._parts.gate.repack(ArtifactKind.TORCHSCRIPT, source, final, cancelled=self._cancelled)
        except InvalidArtifactError as error:
            text = f"The gate refused the pruned model: {error.message}"
            raise JobFailureError(Reason.RESULT_REFUSED, text, metadata=error.metadata) from error
        found = sha256_of(final)
        if found != promised:
            text = f"The pruned model has SHA-256 {found}, but its report names {promised}. This is a fault of the service."
            raise JobFailureError(Reason.RESULT_REFUSED, text)
        self._check_time()
        artifacts, owner = self._parts.artifacts, self._job.owner
        model = artifacts.put_file(owner, ArtifactKind.TORCHSCRIPT, final, "pruned.pt")
        report = artifacts.put_file(owner, ArtifactKind.REPORT, self._folder.output(REPORT_FILE), "report.json")
        return Result(
            model_artifact_id=model.artifact_id,
            report_artifact_id=report.artifact_id,
            verdict=succeeded.verdict,
            sparsity=succeeded.sparsity,
        )

    def _check_time(self) -> None:
        """Ends the run between two steps if it was cancelled or is late; within a step, the step sees to it."""
        if self._cancelled.is_set():
            raise JobFailureError(Reason.CANCELLED, "The job was cancelled.")
        overall = self._limits.overall
        if self._parts.clock.monotonic() > self._limits.deadline:
            message = f"{overall.what} took longer than {overall.limit_seconds:g} s. {overall.remedy}"
            cause = ExitCause.DEADLINE.value
            failure = Failure(reason=Reason.DEADLINE_EXCEEDED, message=message, metadata={"exit_cause": cause})
            raise _EndedError(RunOutcome(result=None, failure=failure, retryable=False, exit_cause=cause))


def _worker_limits(job: Job, limits: ExecutorLimits, clock: Clock) -> WorkerLimits:
    timeout = job.spec.timeout_seconds or limits.job_timeout_seconds
    # Counted from the job's first start, in wall time once, and from here on in time that never jumps.
    gone = max(0.0, clock.now() - job.start_time) if job.start_time is not None else 0.0
    model_remedy = "Send a smaller model, or start the server with a higher {}."
    return WorkerLimits(
        deadline=clock.monotonic() + timeout - gone,
        overall=Overdue(
            "The job",
            timeout,
            "Raise the request's timeout (`prune submit --timeout SECONDS`), or ask for fewer epochs or samples.",
        ),
        start_seconds=limits.start_timeout_seconds,
        silence_seconds=limits.silence_timeout_seconds,
        phases={
            Phase.LOAD: Overdue("LOAD", limits.load_timeout_seconds, model_remedy.format("--load-timeout")),
            Phase.OBSERVE: Overdue("OBSERVE", limits.observe_timeout_seconds, model_remedy.format("--observe-timeout")),
        },
    )


def _device_in_worker(device: str) -> str:
    """A worker sees only the CUDA device that it was given, so that is its first; a traced `cuda:0` then fits too."""
    return "cuda:0" if device.startswith("cuda") else device


def _cuda_devices(device: str) -> str:
    return visible_cuda_device(int(device.partition(":")[2] or 0)) if device.startswith("cuda") else ""


def _verdict_missed(result: Result, required: str) -> RunOutcome:
    failure = Failure(
        reason=Reason.VERDICT_NOT_REACHED,
        message=(
            f"The verdict is {result.verdict.value}, required was {required}. The pruned model and the report can be"
            " fetched; prune less, fine-tune for longer, allow a larger margin, or send more validation samples."
        ),
        metadata={"verdict": result.verdict.value, "required_verdict": required},
    )
    return RunOutcome(result=result, failure=failure, retryable=False, exit_cause=ExitCause.OK.value)


def _outcome_of(error: ServiceError) -> RunOutcome:
    """What a refusal outside the worker means for the run; only faults that may pass are worth another attempt."""
    cause = ExitCause.CANCELLED if error.reason is Reason.CANCELLED else ExitCause.GATE
    passing = isinstance(error, CapacityError | UnavailableError) or error.reason is Reason.GATE_DEADLINE_EXCEEDED
    phase = Phase.EXPORT if error.reason is Reason.RESULT_REFUSED else None
    told = {"exit_cause": cause.value, **error.metadata}
    failure = Failure(reason=error.reason, message=error.message, phase=phase, metadata=told)
    return RunOutcome(result=None, failure=failure, retryable=passing, exit_cause=cause.value)


def _outcome_of_disk(error: OSError) -> RunOutcome:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    message = (
        "The server's disk is full. Free some space there, or delete artifacts that are not needed, and submit again."
        if full
        else f"The server could not read or write its files ({error.strerror}); its log has the details."
    )
    reason, cause = Reason.STORAGE_FULL if full else Reason.INTERNAL, ExitCause.GATE.value
    failure = Failure(reason=reason, message=message, metadata={"exit_cause": cause})
    return RunOutcome(result=None, failure=failure, retryable=True, exit_cause=cause)
