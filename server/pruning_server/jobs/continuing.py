"""From the id of an earlier job to the files that a new one goes on from."""

from __future__ import annotations

from msgspec import structs

from pruning_server.errors import InvalidRequestError, NotFoundError, PreconditionError, Reason
from pruning_server.jobs.model import Job, JobState
from pruning_server.jobs.ports import Artifact, ArtifactStore, JobStore
from pruning_server.spec.request import (
    ArtifactRef,
    ConditionalStrategy,
    Continuation,
    DynamicStrategy,
    Granularity,
    NmPattern,
    PruningSpec,
)

FIELD = "spec.dynamic.continue_from_job_id"
_STRUCTURAL = frozenset({Granularity.CHANNEL, Granularity.HEAD})


def resolve_continuation(owner: str, spec: PruningSpec, jobs: JobStore, artifacts: ArtifactStore) -> PruningSpec:
    """The request with the files of the job that it continues from, and with that job's model where it names none.

    Raises:
        InvalidRequestError: there is no such job for this caller, it has no model to go on from, its files are gone, or
            the request's model or granularity is another than that job's.
        PreconditionError: that job has not ended.
    """
    strategy = spec.strategy
    if not isinstance(strategy, DynamicStrategy) or strategy.continue_from_job_id is None:
        return spec
    job_id = strategy.continue_from_job_id
    try:
        job = jobs.get(owner, job_id)
    except NotFoundError as error:
        raise InvalidRequestError.for_field(FIELD, f"there is no job {job_id!r}", Reason.JOB_NOT_FOUND) from error
    _require_kind(strategy, job)
    result = _require_result(job)
    model = _artifact(owner, job.spec.model.artifact_id, job_id, "the model that it pruned", artifacts)
    pruned = _artifact(owner, result.pruned.artifact_id, job_id, "its pruned model", artifacts)
    report = _artifact(owner, result.report.artifact_id, job_id, "its report", artifacts)
    _require_model(owner, spec, model, job_id, artifacts)
    found = Continuation(pruned=_reference(pruned), report=_reference(report))
    named = spec.model if spec.model.artifact_id else _reference(model)
    return structs.replace(spec, model=named, strategy=structs.replace(strategy, continuation=found))


def repeat_continuation(spec: PruningSpec, earlier: PruningSpec) -> PruningSpec:
    """A repeated request, with the files that were found when it came first."""
    strategy, before = spec.strategy, earlier.strategy
    if not isinstance(strategy, DynamicStrategy) or not isinstance(before, DynamicStrategy):
        return spec
    if strategy.continue_from_job_id is None or strategy.continue_from_job_id != before.continue_from_job_id:
        return spec
    named = spec.model if spec.model.artifact_id else earlier.model
    return structs.replace(spec, model=named, strategy=structs.replace(strategy, continuation=before.continuation))


def _require_result(job: Job) -> Continuation:
    if not job.state.is_terminal:
        text = f"{FIELD}: job {job.job_id} is {job.state}; wait until it has ended"
        raise PreconditionError(Reason.JOB_NOT_TERMINAL, text, metadata={"job_id": job.job_id})
    if job.state is not JobState.SUCCEEDED or job.result is None:
        text = f"job {job.job_id} ended as {job.state}, so that there is nothing to go on from; name one that succeeded"
        raise InvalidRequestError.for_field(FIELD, text)
    return Continuation(
        pruned=ArtifactRef(artifact_id=job.result.model_artifact_id),
        report=ArtifactRef(artifact_id=job.result.report_artifact_id),
    )


def _require_kind(strategy: DynamicStrategy, job: Job) -> None:
    """Channels that went cannot be told from weights that are 0, and zeros elsewhere break a pattern: both must be alike."""
    asked, was = strategy.granularity, job.spec.strategy.granularity
    patterned = Granularity.NM in {asked, was} and (asked, strategy.nm_pattern) != (was, _pattern(job))
    if (asked in _STRUCTURAL) != (was in _STRUCTURAL) or patterned:
        text = f"has pruned with granularity {was.value}, and the request asks for {asked.value}; ask for the same"
        raise InvalidRequestError.for_field(FIELD, f"job {job.job_id} {text}")


def _pattern(job: Job) -> NmPattern | None:
    strategy = job.spec.strategy
    return None if isinstance(strategy, ConditionalStrategy) else strategy.nm_pattern


def _require_model(owner: str, spec: PruningSpec, model: Artifact, job_id: str, artifacts: ArtifactStore) -> None:
    named = spec.model.artifact_id
    if not named or named == model.artifact_id:
        return
    try:
        found = artifacts.get(owner, named)
    except NotFoundError:
        return  # which is a problem of its own
    if found.sha256 != model.sha256:
        text = f"is another model than job {job_id} has pruned; leave it out, or send that one"
        raise InvalidRequestError.for_field("spec.model", text, Reason.CONTENT_MISMATCH)


def _artifact(owner: str, artifact_id: str, job_id: str, what: str, artifacts: ArtifactStore) -> Artifact:
    try:
        return artifacts.get(owner, artifact_id)
    except NotFoundError as error:
        text = f"{what} was deleted (artifact {artifact_id}), so that job {job_id} cannot be continued from"
        raise InvalidRequestError.for_field(FIELD, text, Reason.ARTIFACT_NOT_FOUND) from error


def _reference(artifact: Artifact) -> ArtifactRef:
    return ArtifactRef(artifact_id=artifact.artifact_id)
