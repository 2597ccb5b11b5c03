"""What must hold before a job is queued: its artifacts are there, and its device and criterion are known here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pruning_server.errors import (
    FieldViolation,
    InvalidArtifactError,
    InvalidRequestError,
    NotFoundError,
    NotImplementedFeatureError,
    Reason,
)
from pruning_server.jobs.ports import ArtifactStore, Gate
from pruning_server.jobs.probe import Probe, StrategyInfo
from pruning_server.spec.artifacts import ArtifactKind, Summary
from pruning_server.spec.problems import Problem, refuse
from pruning_server.spec.request import ArtifactRef, PruningSpec, Strategy


@dataclass(frozen=True)
class NamedRef:
    """One artifact of a request: the field that names it, and the kind that it must be of."""

    field: str
    kind: ArtifactKind
    ref: ArtifactRef


def named_refs(spec: PruningSpec) -> tuple[NamedRef, ...]:
    """Every artifact that the job reads, with its field."""
    refs = [
        NamedRef("spec.model", ArtifactKind.TORCHSCRIPT, spec.model),
        NamedRef("spec.validation", ArtifactKind.DATASET, spec.validation),
    ]
    if spec.train is not None:
        refs.append(NamedRef("spec.train", ArtifactKind.DATASET, spec.train))
    if spec.loss_module is not None:
        refs.append(NamedRef("spec.loss_module", ArtifactKind.LOSS, spec.loss_module))
    refs += [
        NamedRef(f"spec.method_samples[{index}].samples", ArtifactKind.DATASET, samples.samples)
        for index, samples in enumerate(spec.method_samples)
    ]
    return tuple(refs)


def check_artifacts(owner: str, spec: PruningSpec, artifacts: ArtifactStore) -> None:
    """Checks that every artifact is there, whole, of the right kind, and the one that the caller means.

    Raises:
        InvalidRequestError: with a violation for each field that is wrong; its reason is that of the first.
    """
    check_refs(owner, named_refs(spec), artifacts)


def check_refs(owner: str, refs: Iterable[NamedRef], artifacts: ArtifactStore) -> None:
    """The same for any artifacts; raises as `check_artifacts` does."""
    refuse(problem for ref in refs if (problem := _problem_of(owner, ref, artifacts)) is not None)


def _problem_of(owner: str, named: NamedRef, artifacts: ArtifactStore) -> Problem | None:
    try:
        artifact = artifacts.get(owner, named.ref.artifact_id)
    except NotFoundError:
        return Problem(
            named.field, f"no artifact {named.ref.artifact_id!r}; upload the file first", Reason.ARTIFACT_NOT_FOUND
        )
    if artifact.kind != named.kind:
        description = f"this artifact is of kind {artifact.kind.value}, needed is {named.kind.value}; upload it as that"
        return Problem(named.field, description, Reason.ARTIFACT_WRONG_KIND)
    if not artifact.active:
        description = (
            f"its upload stands at {artifact.committed_size_bytes} of {artifact.size_bytes} bytes; finish it first"
        )
        return Problem(named.field, description, Reason.ARTIFACT_NOT_ACTIVE)
    if named.ref.sha256 is not None and named.ref.sha256.lower() != artifact.sha256:
        description = f"the stored file has SHA-256 {artifact.sha256}, the request says {named.ref.sha256}"
        return Problem(named.field, description, Reason.CONTENT_MISMATCH)
    return None


def check_catalogue(spec: PruningSpec, probe: Probe) -> None:
    """Checks that the workers of this server know the strategy and its criterion.

    Raises:
        NotImplementedFeatureError: the strategy is listed as not available, or not at all.
        InvalidRequestError: the criterion is unknown, or scores whole channels only where single weights go; the message
            lists those that fit; so with the schedule.
    """
    name = strategy_name(spec.strategy)
    listed: StrategyInfo | None = next((info for info in probe.strategies if info.name == name), None)
    if listed is None or not listed.available:
        raise NotImplementedFeatureError(f"{name} strategy")
    _check_schedule(spec, listed)
    criterion: str | None = getattr(spec.strategy, "criterion", None)
    known = sorted(info.name for info in listed.criteria)
    if criterion is not None and criterion not in known:
        raise InvalidRequestError.for_field(
            f"spec.{name}.criterion",
            f"no criterion {criterion!r}; use one of {', '.join(known)}",
            Reason.UNKNOWN_CRITERION,
        )
    granularity = spec.strategy.granularity
    chosen = next((info for info in listed.criteria if info.name == criterion), None)
    if chosen is not None and chosen.granularities and granularity not in chosen.granularities:
        fitting = sorted(one.name for one in listed.criteria if granularity in one.granularities)
        raise InvalidRequestError.for_field(
            f"spec.{name}.criterion",
            f"{criterion} scores whole channels only; with granularity {granularity.value} use one of {', '.join(fitting)}",
        )


def _check_schedule(spec: PruningSpec, listed: StrategyInfo) -> None:
    wanted: str | None = getattr(spec.strategy, "schedule", None)
    if wanted is None:
        return
    found = next((info for info in listed.schedules if info.name == wanted), None)
    if found is None:
        known = ", ".join(info.name for info in listed.schedules)
        raise InvalidRequestError.for_field("spec.dynamic.schedule", f"no schedule {wanted!r}; use one of {known}")
    granularity = spec.strategy.granularity
    if granularity not in found.granularities:
        fitting = ", ".join(info.name for info in listed.schedules if granularity in info.granularities)
        text = f"{wanted} cannot prune with granularity {granularity.value}; use one of {fitting}"
        raise InvalidRequestError.for_field("spec.dynamic.schedule", text)


def strategy_name(strategy: Strategy) -> str:
    """`static`, `dynamic` or `conditional`; a metric label."""
    return str(strategy.__struct_config__.tag)


def summarize(spec: PruningSpec, artifacts: ArtifactStore, gate: Gate) -> Mapping[str, Summary]:
    """Returns what the gate found in every artifact of the request, by field; asks the gate only once per content.

    Raises:
        InvalidArtifactError: the gate refuses a file; the violation names the field.
    """
    return {named.field: _summary_of(named, artifacts, gate) for named in named_refs(spec)}


def _summary_of(named: NamedRef, artifacts: ArtifactStore, gate: Gate) -> Summary:
    artifact_id = named.ref.artifact_id
    known = artifacts.summary(artifact_id)
    if known is not None:
        return known
    try:
        found = gate.check(named.kind, artifacts.path(artifact_id))
    except InvalidArtifactError as error:
        raise InvalidArtifactError(
            error.reason,
            f"{named.field}: {error.message}",
            violations=(FieldViolation(named.field, error.message),),
            metadata={"artifact_id": artifact_id, **error.metadata},
        ) from error
    artifacts.put_summary(artifact_id, found)
    return found
